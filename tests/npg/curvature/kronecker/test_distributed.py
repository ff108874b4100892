"""Two processes with half of the batch each against one with all of it."""

import socket

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from npg.curvature.kronecker import KroneckerFisher
from tests.npg.curvature.kronecker.helpers import EXACT, measured, moments


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4, padding_idx=0)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.convolution = nn.Conv1d(4, 4, 2, groups=2)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, tokens):
        x = torch.tanh(self.embedding(tokens))
        x = self.attention(x, x, x, need_weights=False)[0]
        x = torch.tanh(self.convolution(x.mT)).mT
        return self.head(self.norm(x).mean(1))


def _model_and_data():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model = _Model()
    return model, torch.randint(5, (6, 4), generator=torch.Generator().manual_seed(1))


def _infinite(output: torch.Tensor) -> torch.Tensor:
    return output.sum() * torch.inf


def _process(rank: int, port: int, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    model, tokens = _model_and_data()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    estimator = KroneckerFisher(wrapped, family="categorical", kind="exact", distributed=True)
    assert estimator.model is model
    own = tokens[:2] if rank == 0 else tokens[2:]  # halves of different sizes
    wrapped(own).sum().backward()
    finite = bool(estimator.finite())
    estimator.update(0.95)
    first = [m.clone() for m in moments(estimator)]
    if rank == 0:  # one of them measures nothing this time
        model(tokens).sum().backward()
    estimator.update(0.95)
    second = [m.clone() for m in moments(estimator)]
    # One of them meets an infinite gradient: both must know.
    empirical = KroneckerFisher(model, kind="empirical", distributed=True)
    loss = _infinite if rank == 0 else torch.sum
    loss(model(own)).backward()
    empirical.finish()
    agreed = bool(empirical.finite())
    torch.save((finite, first, second, agreed), f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")
def test_moments_are_those_of_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(_process, args=(_free_port(), str(tmp_path)), nprocs=2)
    model, tokens = _model_and_data()
    whole = measured(model, tokens, family="categorical")
    for rank in range(2):
        finite, first, second, agreed = torch.load(tmp_path / f"{rank}.pt")
        assert finite
        assert not agreed
        # The second time one process measured the same batch alone: the same mean once more.
        for found in (first, second):
            assert len(found) == len(moments(whole))
            for ours, expected in zip(found, moments(whole), strict=True):
                torch.testing.assert_close(ours, expected, **EXACT)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_shapes_are_known_before_anything_is_measured(sharing):
    model, tokens = _model_and_data()
    model.wide = nn.LayerNorm(300)
    model.scale = nn.Parameter(torch.zeros(3))
    model.transposed = nn.ConvTranspose1d(4, 6, 2, groups=2)
    fresh = KroneckerFisher(model, sharing=sharing)
    shapes = {id(block.parameters[0]): block.shapes() for block in fresh.blocks}
    assert shapes[id(model.wide.weight)] == [(600,)]
    assert shapes[id(model.scale)] == [(3, 3)]
    assert shapes[id(model.transposed.weight)] == [(2, 5, 5), (2, 3, 3)]
    for block in measured(model, tokens, family="categorical", sharing=sharing).blocks:
        if block.moments:
            assert [tuple(m.shape) for m in block.moments] == shapes[id(block.parameters[0])]
