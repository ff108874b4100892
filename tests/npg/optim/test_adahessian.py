"""AdaHessian against the library known for it, and its own formula."""

import math

import pytest
import torch
from torch import nn

from npg.optim import AdaHessian
from tests.npg.oracles import TIGHT

peers = pytest.importorskip("pytorch_optimizer")


def separable(parameters):
    """A loss whose Hessian is diagonal, so that one probe is all of it, whatever the signs."""
    return sum((p.pow(4) / 4 + p.square() + p).sum() for p in parameters)


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
@pytest.mark.parametrize(("decay", "interval"), [(0.0, 1), (0.1, 1)])
def test_is_the_peers(power, decay, interval):
    ours = [nn.Parameter(torch.randn(s)) for s in ((), (3,), (2, 3))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    if power == 0.0:  # theirs is in (0, 1]
        power = 1e-300
    one = AdaHessian(ours, 0.05, (0.9, 0.99), 1e-4, decay, power, hessian_interval=interval)
    two = peers.AdaHessian(
        theirs, 0.05, (0.9, 0.99), decay, hessian_power=power, eps=1e-4, update_period=interval
    )
    for _ in range(20):
        one.step(lambda: separable(ours))
        hessian = [(3 * p.square() + 2).detach() for p in theirs]
        two.zero_grad()
        separable(theirs).backward()
        two.step(hessian=hessian)
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, **TIGHT)


def test_between_probes_it_keeps_the_curvature():
    """Three steps, one probe: v̂ is that of the first, without a bias that nobody fed."""
    p = nn.Parameter(torch.tensor([2.0, -1.0]))
    optimizer = AdaHessian([p], 0.01, (0.0, 0.9), 0.0, hessian_interval=3)
    diagonal = 3 * p.detach().square() + 2
    for _ in range(3):
        x = p.detach().clone()
        optimizer.step(lambda: separable([p]))
        wanted = x - 0.01 * (x.pow(3) + 2 * x + 1) / diagonal
        torch.testing.assert_close(p.detach(), wanted, **TIGHT)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 1, 2, 3), (1, 2, 2, 2, 3)])
def test_kernels_share_the_mean_of_their_sizes(shape):
    weights = torch.rand(shape) + 0.5
    p = nn.Parameter(torch.zeros(shape))
    optimizer = AdaHessian([p], 0.1, eps=0.0)
    optimizer.step(lambda: (weights * p.square()).sum() / 2 - p.sum())
    shared = weights.mean(tuple(range(2, len(shape))), keepdim=True).expand(shape)
    torch.testing.assert_close(p.detach(), 0.1 / shared, **TIGHT)
    p.data.zero_()
    AdaHessian([p], 0.1, eps=0.0, spatial_average=False).step(
        lambda: (weights * p.square()).sum() / 2 - p.sum()
    )
    torch.testing.assert_close(p.detach(), 0.1 / weights, **TIGHT)


def test_curvature_below_zero_counts_by_its_size():
    p = nn.Parameter(torch.tensor([1.0, 1.0]))
    AdaHessian([p], 0.1, eps=0.0).step(lambda: p[0].square() - p[1].square())
    assert p.tolist() == pytest.approx([0.9, 1.1])


def test_its_second_moment_is_the_mean_of_squares():
    """E[(z_i (Hz)_i)²] = H_ii² + Σ_{j≠i} H_ij², which is what v estimates."""
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    p = nn.Parameter(torch.zeros(2))
    optimizer = AdaHessian([p], 0.0, (0.9, 0.999))
    for _ in range(3000):
        optimizer.step(lambda: p @ matrix @ p / 2)
    found = optimizer.state[p]["mean_square"]
    weights = 0.001 * 0.999 ** torch.arange(3000).flip(0) / (1 - 0.999**3000)
    spread = math.sqrt(float(weights.square().sum())) * 2 * 0.5 * 2.0
    assert float(found[0]) == pytest.approx(4.25, abs=5 * spread)
    assert float(found[1]) == pytest.approx(1.25, abs=5 * spread)


def test_a_parameter_that_joins_between_probes_waits_for_the_next():
    first, late = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = AdaHessian([first, late], 0.1, hessian_interval=2)
    optimizer.step(lambda: first.square().sum())
    optimizer.step(lambda: (first.square() + late.square()).sum())
    assert torch.equal(late, torch.ones(2))
    optimizer.step(lambda: (first.square() + late.square()).sum())
    assert bool((late < 1).all())
