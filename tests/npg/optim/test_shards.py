"""FSDP2: two processes with half of the parameters and of the batch, against one with all."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import nn
from torch.nn import functional as F

from npg import optim
from npg.errors import ConfigurationError
from npg.optim.registry import _class
from npg.optim.sharded_checkpoint import load_sharded, save_sharded
from tests.npg.optim.helpers import snapshot
from tests.processes import in_two_processes

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without it"
)
REFUSED = ["adafactor", "adahessian", "ekfac", "kfac", "sophia-g", "sophia-h"]
NAMES = [
    name
    for name in optim.names()
    if name not in REFUSED and getattr(_class(name), "protocol", "gradient") == "gradient"
]
# Roots and bases of less than four steps, so that what is saved is in use; with a small ε roots of
# singular moments are a matter of rounding.
OPTIONS = {
    "shampoo": {"root_interval": 2, "start_step": 2, "epsilon": 1e-4},
    "soap": {"refresh_interval": 2},
}
BAD = ["adax", "muon", "shampoo", "sign-sgd"]
STEPS, MORE = 4, 3


def make(name):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    # Rows that two cannot share evenly, and a single entry, of which one of them has nothing.
    # Square layers have gradients of full rank, and so a basis that is no matter of rounding.
    layers = nn.Linear(5, 5), nn.PReLU(), nn.LayerNorm(5), nn.Linear(5, 5)
    return nn.Sequential(*layers), partial(optim.create, name, **OPTIONS.get(name, {}))


def sharded(name):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, create = make(name)
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, create(model)


def differentiate(model, step, own):
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(2, 8, 5, generator=generator)
    model.zero_grad()
    F.mse_loss(model(x[own]), y[own]).backward()


def train(model, optimizer, steps, own=slice(None)):
    for step in steps:
        differentiate(model, step, own)
        optimizer.step()


def whole(model):
    return torch.cat([p.full_tensor().detach().flatten() for p in model.parameters()])


def _bad(name, rank, own):
    """Whether one parameter stays, and the others move, where a shard's gradient is not finite."""
    model, optimizer = sharded(name)
    differentiate(model, 0, own)
    if rank == 0:
        model[0].weight.grad.to_local()[0, 0] = math.inf
    before = [p.full_tensor().clone() for p in model.parameters()]
    optimizer.step()
    pairs = zip(model.parameters(), before, strict=True)
    return [torch.equal(p.full_tensor(), old) for p, old in pairs]


def _process(rank: int, folder: Path) -> dict:
    own = slice(0, 4) if rank == 0 else slice(4, 8)
    found = {}
    for name in NAMES:
        model, optimizer = sharded(name)
        train(model, optimizer, range(STEPS), own)
        found[name] = whole(model)
        save_sharded(folder / "two" / name, model, optimizer)
        train(model, optimizer, range(STEPS, STEPS + MORE), own)
        found[f"{name} on"] = whole(model)
        for saved in ("one", "two"):
            model, optimizer = sharded(name)
            load_sharded(folder / saved / name, model, optimizer)
            train(model, optimizer, range(STEPS, STEPS + MORE), own)
            found[f"{name} from {saved}"] = whole(model)
    for name in BAD:
        found[f"{name} bad"] = _bad(name, rank, own)
    for name in REFUSED:
        try:
            sharded(name)
        except ConfigurationError as error:
            found[name] = str(error)
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    dtype = torch.get_default_dtype()
    for name in NAMES:
        model, create = make(name)
        optimizer = create(model)
        train(model, optimizer, range(STEPS))
        save_sharded(folder / "one" / name, model, optimizer)
    torch.set_default_dtype(dtype)
    return folder, in_two_processes(partial(_process, folder=folder), folder)


@pytest.mark.parametrize("name", NAMES)
def test_two_shards_move_as_one_process(name, results):
    folder, (first, second) = results
    model, create = make(name)
    optimizer = create(model)
    train(model, optimizer, range(STEPS))
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
    close(first[name], snapshot(model))
    assert torch.equal(first[name], second[name])
    train(model, optimizer, range(STEPS, STEPS + MORE))
    close(first[f"{name} on"], snapshot(model))
    # Saved by two, loaded by two; by one, loaded by two; by two, loaded by one. To rounding alone:
    # torch's checkpoints forget in which order a root's entries lie in memory.
    close(first[f"{name} from two"], first[f"{name} on"])
    close(first[f"{name} from one"], snapshot(model))
    alone, create = make(name)
    loaded = create(alone)
    load_sharded(folder / "two" / name, alone, loaded)
    train(alone, loaded, range(STEPS, STEPS + MORE))
    close(snapshot(alone), snapshot(model))


@pytest.mark.parametrize("name", BAD)
def test_ranks_agree_on_what_is_not_finite(name, results):
    _, found = results
    for one in found:
        stayed = one[f"{name} bad"]
        assert stayed[0]
        assert not any(stayed[1:])


@pytest.mark.parametrize("name", REFUSED)
def test_those_that_cannot_say_so(name, results):
    _, found = results
    for one in found:
        assert "takes no parameters that fully_shard has spread: use Distr" in one[name]
