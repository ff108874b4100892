"""Every optimizer can be copied, and leaves nothing on the modules it trained."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch.nn import functional as F

from tests.npg.optim.helpers import snapshot
from tests.npg.optim.variants import (
    VARIANTS,
    described,
    each_counting,
    each_optimizer,
    make,
    train,
)
from tests.npg.oracles import mlp
from tests.pairs import pairs


@pytest.fixture
def data():
    return torch.randn(40, 3), torch.randint(3, (40,))


@pytest.mark.parametrize(
    *pairs(
        variant={described(variant): variant for variant in VARIANTS},
        how=["pickle", "deepcopy"],
        scheduled=[False, True],
    )
)
def test_copies_continue_alike_and_apart(variant, data, how, scheduled):
    model = mlp()
    optimizer = make(variant, model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100) if scheduled else None
    train(optimizer, model, data, 2)
    pair = (model, optimizer)
    copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    twin, other = copied
    kept = snapshot(model)
    losses = train(other, twin, data, 3)
    assert torch.equal(snapshot(model), kept), "the copy moves the copy only"
    assert not torch.equal(snapshot(twin), kept)
    assert train(optimizer, model, data, 3) == losses
    assert torch.equal(snapshot(twin), snapshot(model))
    seen = []
    other.register_step_pre_hook(lambda *_: seen.append(1))
    train(other, twin, data, 1)
    assert seen == [1]
    other.zero_grad()
    del scheduler


@each_counting
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_a_copy_goes_on_counting(variant, data, how):
    model = mlp()
    optimizer = make(variant, model)
    train(optimizer, model, data, 2)
    pair = (model, optimizer)
    copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    train(copied[1], copied[0], data, 4)
    assert copied[1].state_dict()["npg"]["steps"] == 6
    assert optimizer.state_dict()["npg"]["steps"] == 2


@pytest.mark.usefixtures("young_heap")
@each_optimizer
def test_a_copied_model_has_no_ghost(variant, data):
    """An optimizer leaves nothing on the module that a copy of the module would drag along."""
    model = mlp()
    optimizer = make(variant, model)
    train(optimizer, model, data, 1)
    ghost = weakref.ref(optimizer)
    twin = copy.deepcopy(model)
    del optimizer
    gc.collect()
    assert ghost() is None
    twin(data[0])  # a hook that was copied leaves when it finds nobody to tell
    for module in (*model.modules(), *twin.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert all(not p._backward_hooks for p in twin.parameters())
    F.cross_entropy(twin(data[0]), data[1]).backward()
