"""SophiaG in two processes: replicas stay the same, and have the curvature of all samples."""

import socket

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from npg.optim import SophiaG
from tests.npg.optim.helpers import snapshot

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without it"
)


def _process(rank: int, port: int, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
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
    torch.save([snapshot(model), curvature], f"{results}/{rank}")
    torch.distributed.destroy_process_group()


def test_replicas_stay_the_same(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, str(tmp_path)), nprocs=2)
    (one, curvature), (other, twin) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert torch.equal(one, other)
    for a, b in zip(curvature, twin, strict=True):
        assert torch.equal(a, b)
        assert bool((a > 0).any())
