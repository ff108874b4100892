"""SophiaG in two processes: replicas stay the same, and have the curvature of all samples."""

import pytest
import torch
import torch.distributed
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from npg.optim import SophiaG
from tests.npg.optim.helpers import snapshot
from tests.processes import in_two_processes

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without it"
)


def _process(rank: int) -> tuple:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    wrapped = DistributedDataParallel(model)
    # Ranks draw labels of their own, as different data would make them anyway.
    optimizer = SophiaG(wrapped, 0.01, likelihood="categorical", hessian_interval=2, seed=rank)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(5):
        x = torch.randn(3 + rank, 3, generator=generator)
        y = torch.randint(3, (3 + rank,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x), y).backward()
        optimizer.step()
    curvature = [optimizer.state[p]["curvature"] for p in model.parameters()]
    return snapshot(model), curvature


def test_replicas_stay_the_same(tmp_path):
    (one, curvature), (other, twin) = in_two_processes(_process, tmp_path)
    assert torch.equal(one, other)
    for a, b in zip(curvature, twin, strict=True):
        assert torch.equal(a, b)
        assert bool((a > 0).any())
