"""Every optimizer goes on from what it saved."""

import io

import pytest
import torch

from tests.npg.optim.helpers import snapshot
from tests.npg.optim.variants import each_counting, each_optimizer, each_own, make, train
from tests.npg.oracles import mlp


@pytest.fixture
def data():
    return torch.randn(40, 3), torch.randint(3, (40,))


@each_optimizer
def test_resuming_is_bit_for_bit(variant, data):
    """Interrupted after three steps, through a file, into differently seeded objects."""
    model = mlp()
    optimizer = make(variant, model, lr=0.7)
    train(optimizer, model, data, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    losses = train(optimizer, model, data, 4)

    other = mlp()
    seed = {"seed": 99} if "seed" in variant[1] else {}
    resumed = make(variant, other, **seed)
    train(resumed, other, data, 1)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.param_groups[0]["lr"] == 0.7
    assert train(resumed, other, data, 4) == losses
    assert torch.equal(snapshot(model), snapshot(other))
    assert repr(resumed.state_dict()) == repr(optimizer.state_dict())


@each_counting
def test_counters_are_not_cast_to_the_parameters_dtype(variant, data):
    model = mlp().half().float()  # float32 parameters
    optimizer = make(variant, model)
    train(optimizer, model, (data[0].float(), data[1]), 1)
    optimizer.extra["steps"] = 2**24 + 1  # no float32 is this number
    state = optimizer.state_dict()
    other = make(variant, mlp().float())
    other.load_state_dict(state)
    assert other.extra["steps"] == 2**24 + 1
    assert type(other.extra["steps"]) is int


@each_own
def test_loading_leaves_the_dictionary_alone(variant, data):
    """torch's own move the tensors of the dictionary they were given."""
    model = mlp()
    optimizer = make(variant, model)
    train(optimizer, model, data, 1)
    state = optimizer.state_dict()
    before = repr(state)
    optimizer.load_state_dict(state)
    train(optimizer, model, data, 2)
    assert repr(state) == before


@each_counting
def test_counts_steps(variant, data):
    model = mlp()
    optimizer = make(variant, model)
    train(optimizer, model, data, 3)
    assert optimizer.state_dict()["npg"]["steps"] == 3
