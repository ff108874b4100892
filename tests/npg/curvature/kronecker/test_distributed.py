"""Two processes with half of the batch each against one with all of it."""

import copy

import pytest
import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from npg.curvature.kronecker import KroneckerFisher
from tests.npg.curvature.kronecker.helpers import EXACT, measured, moments
from tests.processes import in_two_processes


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


def _process(rank: int) -> tuple:
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
    return finite, first, second, agreed, _in_parts(rank), _early(), _beside(rank)


def _in_parts(rank: int) -> list[torch.Tensor]:
    """One batch in one pass on the first rank, and in two of other sizes on the second."""
    model, tokens = _model_and_data()
    estimator = KroneckerFisher(model, family="categorical", kind="exact", distributed=True)
    assert bool(estimator.finite())  # from here on sums are sent early
    estimator.clear()
    # What was on its way when everything was forgotten must not come with the next step's: from
    # both ranks, or from one of them alone.
    model(tokens[:1]).sum().backward()
    estimator.discard()
    if rank == 0:
        model(tokens[:1]).sum().backward()
    estimator.discard()
    for part in [tokens[:2]] if rank == 0 else [tokens[2:3], tokens[3:]]:
        model(part).sum().backward()
    assert bool(estimator.finite())
    estimator.update(0.95)
    estimator.capture.remove()
    return [m.clone() for m in moments(estimator)]


def _beside(rank: int) -> list[torch.Tensor]:
    """Two estimators, of which the first sees no sample on the second rank at times."""
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    inputs = torch.ones(2, 3)
    pair = [
        KroneckerFisher(model, family="categorical", kind="exact", distributed=True)
        for model in (first, second)
    ]
    for _ in range(2):
        loss = second(5 * inputs).sum()
        if rank == 0:
            loss = loss + first(inputs).sum()
        loss.backward()
        for estimator in pair:
            assert bool(estimator.finite())
            estimator.update(0.5)
    return [estimator.blocks[0].moments[0].clone() for estimator in pair]


def _early() -> list[bool]:
    """Whether the sums are on their way before the gradient of the first layer is there."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    estimator = KroneckerFisher(model, family="categorical", distributed=True)
    assert bool(estimator.finite())
    estimator.clear()
    found = []
    model[0].register_full_backward_hook(lambda *_: found.append(estimator._begun is not None))
    model(torch.randn(5, 3)).sum().backward()
    copied = copy.deepcopy(estimator)  # without what is on its way, which cannot be copied
    assert not any(block.sums for block in copied.blocks)
    assert bool(estimator.finite())
    return found


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")
def test_moments_are_those_of_the_whole_batch(tmp_path):
    results = in_two_processes(_process, tmp_path)
    model, tokens = _model_and_data()
    whole = measured(model, tokens, family="categorical")
    for finite, first, second, agreed, in_parts, early, beside in results:
        assert finite
        assert not agreed
        assert early[-1]  # the last is of the backward pass that was asked for
        # Inputs of 1, or 5, and a 1 for the bias.
        for found, value in zip(beside, (1.0, 5.0), strict=True):
            column = torch.tensor([value, value, value, 1.0])
            torch.testing.assert_close(found, torch.outer(column, column))
        # The second time one process measured the same batch alone: the same mean once more.
        for found in (first, second, in_parts):
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
