"""Layers' inverses in a narrower dtype: how near they are, and when they stay as they were."""

import pytest
import torch
from torch import nn

from npg.curvature.kronecker import MatrixBlock
from npg.curvature.kronecker.layers import LinearLayer
from npg.preconditioners.kfac import KroneckerInverse
from npg.preconditioners.kronecker_products import distortion
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


def worst_by_eigenvalues(moment, damping, inverse, rounded):
    """The largest |eigenvalue| of M^½ (B − M⁻¹) M^½."""
    size = moment.shape[-1]
    values, vectors = torch.linalg.eigh(moment + damping * torch.eye(size))
    root = vectors * values.sqrt() @ vectors.mT
    return torch.linalg.eigvalsh(root @ (rounded.double() - inverse) @ root).abs().max()


@pytest.mark.parametrize("size", [20, 200])
@pytest.mark.parametrize("along", ["ones", "random"])
@pytest.mark.parametrize("largest", [3.0, 100.0, 3000.0])
def test_distortion_is_the_dense_one(size, along, largest):
    """One large eigenvalue: where rounding does most harm."""
    torch.manual_seed(1)
    direction = torch.ones(size) if along == "ones" else torch.randn(size)
    direction /= direction.norm()
    moment = largest * torch.outer(direction, direction) + 0.1 * torch.diag(torch.rand(size))
    damping = torch.tensor(1.0)
    inverse = torch.linalg.inv(moment + damping * torch.eye(size))
    rounded = inverse.bfloat16()
    found = distortion(moment, damping, inverse, rounded)
    expected = worst_by_eigenvalues(moment, damping, inverse, rounded)
    assert 0.6 * expected < found < 1.0001 * expected


def test_distortion_of_groups_is_the_worst_one():
    torch.manual_seed(1)
    rows = torch.randn(2, 30, 6)
    moment, damping = rows.mT @ rows, torch.tensor([0.3, 0.1])
    inverse = torch.linalg.inv(moment + damping[:, None, None] * torch.eye(6))
    rounded = inverse.bfloat16()
    each = [
        worst_by_eigenvalues(*given)
        for given in zip(moment, damping, inverse, rounded, strict=True)
    ]
    assert 0.6 * max(each) < distortion(moment, damping, inverse, rounded) < 1.0001 * max(each)


def test_what_rounding_would_spoil_stays():
    """It would make the inverse indefinite: uᵀBu < 0 along inputs that share a mean."""
    block = MatrixBlock(LinearLayer(None, torch.zeros(3, 100), None))
    block.moments = [torch.full((100, 100), 0.01), torch.eye(3)]
    for damping, kind in ((1.0, torch.bfloat16), ((1 / 70) ** 2, torch.float64)):
        exact, narrow = both([block], damping)
        assert {inverse.dtype for inverse in narrow.inverses[0]} == {kind}
    inverse = exact.inverses[0][0]
    assert inverse.sum() > 0
    assert inverse.bfloat16().double().sum() < 0


def test_of_groups_the_worst_decides(blocks):
    (block,) = [b for b in blocks if b.parameters[0].shape == (6, 2, 2)]
    assert block.moments[0].ndim == 3
    block.moments[1] = torch.eye(3).expand(2, 3, 3)
    _, narrow = both([block], 1e-2)
    assert {inverse.dtype for inverse in narrow.inverses[0]} == {torch.bfloat16}
    block.moments[0][1] = 1e6 * torch.ones(5, 5)
    _, narrow = both([block], 1e-8)
    assert {inverse.dtype for inverse in narrow.inverses[0]} == {torch.float64}


def test_a_loaded_inverse_is_as_narrow_as_it_was(blocks):
    _, narrow = both(blocks, 0.03)
    other = KroneckerInverse(blocks, dtype=torch.bfloat16)
    other.load_state_dict(narrow.state_dict())
    kinds = [[[m.dtype for m in own] for own in inverse.inverses] for inverse in (narrow, other)]
    assert kinds[0] == kinds[1]
