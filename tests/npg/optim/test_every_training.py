"""Every optimizer lowers the loss, and moves what it was given to train and nothing else."""

import copy

import pytest
import torch
from torch import nn

from tests.npg.optim.helpers import snapshot
from tests.npg.optim.variants import each_optimizer, forward, make, train
from tests.npg.oracles import mlp


@pytest.fixture
def data():
    return torch.randn(40, 3), torch.randint(3, (40,))


@each_optimizer
def test_the_loss_falls(variant, data):
    model = mlp()
    losses = train(make(variant, model), model, data, 20)
    assert losses[-1] < 0.9 * losses[0]


@each_optimizer
def test_the_loss_returned_is_that_before_the_step(variant, data):
    model = mlp()
    before = float(forward(model, *data)()[0])
    assert train(make(variant, model), model, data, 1) == [pytest.approx(before, rel=1e-12)]


@each_optimizer
def test_is_deterministic(variant, data):
    model = mlp()
    twin = copy.deepcopy(model)
    train(make(variant, model), model, data, 4)
    torch.randn(5)  # the global generator does not matter
    train(make(variant, twin), twin, data, 4)
    assert torch.equal(snapshot(model), snapshot(twin))


@each_optimizer
def test_float32(variant, data):
    model = mlp().float()
    x, y = data
    losses = train(make(variant, model), model, (x.float(), y), 10)
    assert losses[-1] < losses[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@each_optimizer
@pytest.mark.parametrize("frozen", ["0.weight", "2.bias", "4.weight"])
def test_frozen_and_unused_parameters_stay(variant, data, frozen):
    model = mlp()
    model.idle = nn.Identity()
    model.idle.weight = nn.Parameter(torch.ones(2))
    model.get_parameter(frozen).requires_grad_(False)
    kept = model.get_parameter(frozen).clone()
    losses = train(make(variant, model), model, data, 5)
    assert losses[-1] < losses[0]
    assert torch.equal(model.get_parameter(frozen), kept)
    if variant[0] != "evolution-strategies":  # which cannot know what the objective reads
        assert torch.equal(model.idle.weight, torch.ones(2))


@each_optimizer
def test_a_parameter_frozen_later_stays(variant, data):
    model = mlp()
    optimizer = make(variant, model)
    train(optimizer, model, data, 1)
    model[0].weight.requires_grad_(False)
    kept = model[0].weight.clone()
    losses = train(optimizer, model, data, 3)
    assert losses[-1] < losses[0]
    assert torch.equal(model[0].weight, kept)


@each_optimizer
def test_a_scalar_parameter_and_a_three_dimensional_input(variant, data):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))
            self.body = mlp()

        def forward(self, x):
            return self.scale * self.body(x).mean(1)

    model, (x, y) = Scaled(), data
    losses = train(make(variant, model), model, (x.unsqueeze(1).repeat(1, 2, 1), y), 5)
    assert losses[-1] < losses[0]
    assert float(model.scale) != 1.0


@each_optimizer
def test_moves_are_seen_by_version_counters(variant, data):
    model = mlp()
    versions = [p._version for p in model.parameters()]
    train(make(variant, model), model, data, 2)  # SOAP's first step gathers only
    assert all(p._version > v for p, v in zip(model.parameters(), versions, strict=True))
