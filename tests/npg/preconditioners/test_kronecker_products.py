"""Layers' inverses in a narrower dtype: how near they are, and when they stay as they were."""

import pytest
import torch
from torch import nn

from npg.curvature.kronecker import MatrixBlock
from npg.preconditioners.kfac import KroneckerInverse
from npg.preconditioners.kronecker_products import NARROW_CONDITION
from tests.npg.curvature.kronecker.helpers import measured


class Layers(nn.Module):
    """An embedding, a grouped convolution, a norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.convolution = nn.Conv1d(4, 6, 2, groups=2)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens):
        x = torch.tanh(self.convolution(self.embedding(tokens).mT))
        return self.head(self.norm(x.mean(2)))


@pytest.fixture
def blocks():
    torch.manual_seed(2)
    return measured(Layers(), torch.randint(5, (40, 4)), family="categorical").blocks


def both(blocks, damping):
    """The inverse in the moments' dtype, and in bfloat16."""
    pair = KroneckerInverse(blocks), KroneckerInverse(blocks, dtype=torch.bfloat16)
    for inverse in pair:
        inverse.refresh(damping)
    return pair


def solved(inverse, block):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(p.shape, generator=generator) for p in block.parameters]
    return list(inverse.apply(dict(zip(block.parameters, gradients, strict=True))).values())


def test_is_off_by_its_rounding(blocks):
    exact, narrow = both(blocks, 0.03)
    for block, inverses in zip(blocks, narrow.inverses, strict=True):
        kind = torch.bfloat16 if isinstance(block, MatrixBlock) else torch.float64
        assert {inverse.dtype for inverse in inverses} == {kind}
        for ours, theirs in zip(solved(narrow, block), solved(exact, block), strict=True):
            assert ours.dtype == theirs.dtype
            error = (ours - theirs).norm() / theirs.norm()
            assert error < 0.03
            # It is another number: the products went through eight bits.
            assert error > 1e-5 or kind == torch.float64


def test_what_is_badly_conditioned_stays(blocks):
    block = blocks[-1]
    block.moments[1] = torch.eye(3)
    values = torch.ones(7)
    for condition, kind in ((0.3, torch.bfloat16), (3, torch.float64)):
        values[0] = condition * NARROW_CONDITION
        block.moments[0] = values.diag()
        _, narrow = both([block], 1e-12)
        assert {inverse.dtype for inverse in narrow.inverses[0]} == {kind}


def test_of_groups_the_worst_conditioned_decides(blocks):
    (block,) = [b for b in blocks if len(b.parameters) and b.parameters[0].shape == (6, 2, 2)]
    block.moments[1] = torch.eye(3).expand(2, 3, 3)
    _, narrow = both([block], 1e-2)
    assert {inverse.dtype for inverse in narrow.inverses[0]} == {torch.bfloat16}
    block.moments[0][1] = torch.diag(torch.tensor([1e6, 1.0, 1.0, 1.0, 1.0]))
    _, narrow = both([block], 1e-8)
    assert {inverse.dtype for inverse in narrow.inverses[0]} == {torch.float64}
