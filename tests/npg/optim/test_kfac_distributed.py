"""K-FAC in two processes with half of the batch each, against one with all of it."""

import math

import pytest
import torch
import torch.distributed
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from npg.optim import KFAC
from npg.steps import LevenbergMarquardt
from tests.npg.optim.helpers import objective, snapshot
from tests.processes import in_two_processes

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without it"
)
STEPS = 3
# Options, and whether steps get a forward-only closure.
VARIANTS = {
    "plain": ({"kl_clip": 1e-3}, False),
    "plain ekfac": ({"eigenbasis": True, "inverse_interval": 2}, False),
    "plain chain": ({"inverse": "block-tridiagonal", "kl_clip": 1e-3}, False),
    "exact step": ({"damping": LevenbergMarquardt(0.1), "weight_decay": 0.01}, True),
    "ekfac": ({"damping": LevenbergMarquardt(1e-3), "eigenbasis": True}, True),
    "memory-optimal": ({"kl_clip": 1e-3, "assignment": "memory-optimal"}, False),
    "memory-optimal narrow": (
        {"kl_clip": 1e-3, "assignment": "memory-optimal", "inverse_dtype": torch.bfloat16},
        False,
    ),
    "memory-optimal exact step": (
        {"damping": LevenbergMarquardt(0.1), "assignment": "memory-optimal"},
        True,
    ),
    "fixed momentum": ({"damping": LevenbergMarquardt(0.1), "momentum": 0.5}, True),
}


def make(model, name):
    options, _ = VARIANTS[name]
    return KFAC(
        model, likelihood="categorical", fisher="exact", **{"inverse_interval": 1, **options}
    )


def model_and_data():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(10, 3, generator=generator)
    return model, x, torch.randint(3, (10,), generator=generator)


def train(optimizer, model, x, y, closures, steps=STEPS):
    reports = []
    for _ in range(steps):
        if closures:
            reports.append(optimizer.step(objective(model, x, y)))
            continue
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return [[r.loss, r.loss_after, r.damping, r.reduction_ratio] for r in reports]


def _in_two(name, own):
    """The parameters after a training that went on from a state in other optimizers."""
    saved = None
    model, x, y = model_and_data()
    for steps in (STEPS, 2):
        wrapped = DistributedDataParallel(model)
        optimizer = make(wrapped, name)
        if saved is not None:
            optimizer.load_state_dict(saved)
        train(optimizer, wrapped, x[own], y[own], VARIANTS[name][1], steps)
        saved = optimizer.state_dict()
        optimizer.fisher.capture.remove()
    return snapshot(model)


def _process(rank: int) -> dict:
    found = {}
    for name, (_, closures) in VARIANTS.items():
        model, x, y = model_and_data()
        wrapped = DistributedDataParallel(model)
        optimizer = make(wrapped, name)
        own = slice(0, 5) if rank == 0 else slice(5, 10)
        reports = train(optimizer, wrapped, x[own], y[own], closures)
        inverses = optimizer.preconditioner.inverses
        sizes = [sum(m.numel() for m in own) for own in inverses]
        state = optimizer.state_dict()["kfac"]["preconditioner"]
        found[name] = (snapshot(model), reports, sizes, state)
        train(optimizer, wrapped, x[own], y[own], closures, steps=2)
        found[f"{name} at once"] = snapshot(model)
        found[f"{name} in two"] = _in_two(name, own)
    # A batch that is bad on one rank is left out on both, and a loss that is stops both.
    for closures in (False, True):
        model, x, y = model_and_data()
        wrapped = DistributedDataParallel(model)
        optimizer = KFAC(wrapped, likelihood="categorical")
        train(optimizer, wrapped, x, y, closures)
        before = snapshot(model)
        bad = x.clone()
        if rank == 0:
            bad[0, 0] = math.inf
        train(optimizer, wrapped, bad, y, closures)
        kept = torch.equal(snapshot(model), before)
        found[f"bad {closures}"] = (kept, optimizer.skipped, dict(optimizer.extra))
    found["no samples"] = _without_samples(rank)
    return found


def _without_samples(rank: int) -> list[tuple]:
    """Reports of steps, in the second of which one rank has an empty batch: its mean is NaN."""
    model, x, y = model_and_data()
    wrapped = DistributedDataParallel(model)
    optimizer = KFAC(wrapped, likelihood="categorical", fisher="exact", statistics_interval=1)
    found = []
    for empty in (False, True, False):
        rows = slice(0, 0 if empty and rank == 1 else 10)
        report = optimizer.step(objective(wrapped, x[rows], y[rows]))
        moments = [m.clone() for block in optimizer.fisher.blocks for m in block.moments]
        found.append((report.reason, snapshot(model), moments))
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return in_two_processes(_process, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", VARIANTS)
def test_is_one_process_with_the_whole_batch(name, results):
    model, x, y = model_and_data()
    reports = train(make(model, name), model, x, y, VARIANTS[name][1])
    first, second = (found[name] for found in results)
    assert torch.equal(first[0], second[0]), "ranks do not drift apart"
    torch.testing.assert_close(first[0], snapshot(model), rtol=1e-6, atol=1e-9)
    for ours, theirs in zip(reports, first[1], strict=True):
        assert theirs == pytest.approx(ours, rel=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_states_are_of_all_ranks_and_go_on_bit_for_bit(name, results):
    first, second = results
    for found in results:
        assert torch.equal(found[f"{name} in two"], found[f"{name} at once"])
    described = [list(_tensors(found[name][3])) for found in (first, second)]
    assert len(described[0]) == len(described[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*described, strict=True))
    narrow = any(t.dtype == torch.bfloat16 for t in described[0])
    assert narrow == ("inverse_dtype" in VARIANTS[name][0])


def test_a_rank_without_samples_stops_the_step_of_all(results):
    reasons = [[reason for reason, *_ in found["no samples"]] for found in results]
    assert reasons[0] == reasons[1]
    assert [reason == "loss or gradient is not finite" for reason in reasons[0]] == [
        False, True, False
    ]  # fmt: skip
    first, second = (found["no samples"][-1] for found in results)
    assert torch.equal(first[1], second[1])
    # The whole batch on both, all three times that counted: nothing of the step that was stopped.
    model, x, y = model_and_data()
    alone = KFAC(model, likelihood="categorical", fisher="exact", statistics_interval=1)
    alone.step(objective(model, x, y))
    alone.step(objective(model, x, y))
    moments = [m for block in alone.fisher.blocks for m in block.moments]
    for ours, theirs in zip(first[2], moments, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["memory-optimal", "memory-optimal exact step"])
def test_a_layer_s_inverse_is_on_one_rank(name, results):
    # Factors of 4 and 4, 5 and 5, 6 and 3: n³ of 128, 250 and 243, shared out as 250 and 371.
    first, second = (found[name][2] for found in results)
    assert (first, second) == ([0, 50, 0], [32, 0, 45])


def _tensors(state):
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)


@pytest.mark.parametrize("closures", [False, True])
def test_ranks_agree_on_what_is_not_finite(closures, results):
    (kept, skipped, extra), (other_kept, other_skipped, other_extra) = (
        found[f"bad {closures}"] for found in results
    )
    assert kept
    assert other_kept
    assert skipped == other_skipped == STEPS
    assert extra == pytest.approx(other_extra)
