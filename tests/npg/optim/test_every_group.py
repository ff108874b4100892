"""Every optimizer takes parameter groups, schedulers and hooks as torch's do."""

import warnings

import pytest
import torch

from npg.errors import ConfigurationError
from npg.optim.line_search import LineSearchOptimizer
from tests.npg.optim.helpers import snapshot
from tests.npg.optim.variants import each_optimizer, listens, make, train
from tests.npg.oracles import mlp


@pytest.fixture
def data():
    return torch.randn(40, 3), torch.randint(3, (40,))


@each_optimizer
def test_every_group_has_a_rate(variant):
    optimizer = make(variant, mlp(), lr=0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


@each_optimizer
def test_a_scheduler_drives_the_rate(variant, data):
    model = mlp()
    optimizer = make(variant, model, lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    used = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where step was not seen
        for _ in range(3):
            used.append(optimizer.param_groups[0]["lr"])
            train(optimizer, model, data, 1)
            scheduler.step()
    assert used == pytest.approx([0.5, 0.05, 0.005])


@each_optimizer
def test_the_rate_matters(variant, data):
    moved = []
    for lr in (1e-2, 1e-3):
        torch.manual_seed(0)
        model = mlp()
        start = snapshot(model)
        searches = isinstance(make(variant, mlp()), LineSearchOptimizer)
        options = {"line_search": None} if searches else {}  # which would find its own length
        train(make(variant, model, lr=lr, **options), model, data, 1)
        moved.append(float((snapshot(model) - start).norm()))
    assert moved[0] == pytest.approx(10 * moved[1], rel=1e-6)


@each_optimizer
def test_groups_can_be_added(variant, data):
    if variant[0] == "muon":
        with pytest.raises(ConfigurationError, match="make a new one"):
            make(variant, mlp()).add_param_group({"params": mlp().parameters()})
        return
    model = mlp()
    last = list(model[4].parameters())
    optimizer = make(variant, model, parameters=last) if listens(variant) else make(variant, last)
    start = snapshot(model)
    train(optimizer, model, data, 2)
    assert torch.equal(snapshot(model)[:41], start[:41])
    optimizer.add_param_group({"params": model[0].parameters()})
    train(optimizer, model, data, 2)
    assert not torch.equal(snapshot(model)[:16], start[:16])
    assert torch.equal(snapshot(model)[16:41], start[16:41])


@each_optimizer
def test_part_of_a_module(variant, data):
    model = mlp()
    start = snapshot(model)
    model[0].weight.requires_grad_(False)  # a frozen one among them is left out
    train(make(variant, model, parameters=model[0].parameters()), model, data, 2)
    moved = snapshot(model) != start
    assert bool(moved[12:16].all())
    assert not moved[:12].any()
    assert not moved[16:].any()


@each_optimizer
def test_nothing_to_train_or_foreign_parameters(variant):
    model = mlp()
    foreign = [mlp()[0].weight, model[0].weight]
    with pytest.raises(ConfigurationError, match="among the model's"):
        make(variant, model, parameters=foreign)
    with pytest.raises(ConfigurationError, match=r"restricts a module|must be the module"):
        make(variant, list(model.parameters()), parameters=model.parameters())
    model.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="require a gradient"):
        make(variant, model)


@each_optimizer
def test_hooks_are_called(variant, data):
    model = mlp()
    optimizer = make(variant, model)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(optimizer, model, data, 2)
    assert seen == ["before", "after"] * 2
