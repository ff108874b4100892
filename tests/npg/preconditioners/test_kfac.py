"""The inverse of Kronecker factors against dense inverses, and its failures."""

import copy

import pytest
import torch
from torch import nn
from torch.linalg import inv

from npg.curvature.kronecker import FreeBlock, MatrixBlock, VectorBlock
from npg.errors import NumericalError
from npg.linalg import inverses
from npg.preconditioners.kfac import KroneckerInverse
from tests.npg.curvature.kronecker.helpers import block_of, dense, measured, moments
from tests.npg.oracles import mlp


class _Everything(nn.Module):
    """One layer of each kind of block."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.convolution = nn.Conv1d(4, 6, 2, groups=2)
        self.transposed = nn.ConvTranspose1d(6, 4, 2, groups=2, bias=False)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.wide = nn.Linear(4, 150)
        self.wide_norm = nn.LayerNorm(150)
        self.scale = nn.Parameter(torch.ones(150))
        self.head = nn.Linear(150, 3)

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = self.transposed(torch.tanh(self.convolution(x.mT))).mT
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(torch.tanh(self.wide_norm(self.wide(x)) * self.scale).mean(1))


@pytest.fixture
def estimator():
    torch.manual_seed(2)
    return measured(
        _Everything(), torch.randint(5, (6, 4)), family="categorical",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def _damped(block: MatrixBlock, damping: float) -> torch.Tensor:
    """(G + √λ/π I) ⊗ (A + π√λ I), π from its definition, group by group."""
    inputs, signals = block.moments
    inputs = inputs.diag() if inputs.ndim == 1 else inputs
    if inputs.ndim == 2:
        inputs, signals = inputs.unsqueeze(0), signals.unsqueeze(0)
    products = []
    for a, g in zip(inputs, signals, strict=True):
        pi = ((a.trace() / len(a)) / (g.trace() / len(g))).sqrt()
        products.append(
            torch.kron(
                g + damping**0.5 / pi * torch.eye(len(g)),
                a + damping**0.5 * pi * torch.eye(len(a)),
            )
        )
    return torch.block_diag(*products)


def _applied(
    inverse: KroneckerInverse, i: int, gradients: list[torch.Tensor]
) -> list[torch.Tensor]:
    parameters = inverse.blocks[i].parameters
    found = inverse.apply(dict(zip(parameters, gradients, strict=True)))
    assert set(found) == set(parameters)
    return [found[p] for p in parameters]


class TestApply:
    @pytest.mark.parametrize("damping", [1.0, 1e-3])
    def test_is_the_dense_inverse_of_every_block(self, estimator, damping):
        inverse = KroneckerInverse(estimator.blocks)
        inverse.refresh(damping)
        kinds = set()
        for i, block in enumerate(estimator.blocks):
            gradients = [torch.randn_like(p) for p in block.parameters]
            found = _applied(inverse, i, gradients)
            assert [f.shape for f in found] == [p.shape for p in block.parameters]
            if isinstance(block, MatrixBlock):
                matrix = block.layer.matrix(gradients)
                expected = (inv(_damped(block, damping)) @ matrix.flatten()).view_as(matrix)
                expected = block.layer.gradients(expected)
                kinds.add(block.moments[0].ndim)
            else:
                flat = torch.cat([g.flatten() for g in gradients])
                plain = dense(block)
                solved = inv(plain + damping * torch.eye(len(plain))) @ flat
                expected = solved.split([p.numel() for p in block.parameters])
                expected = [e.view_as(p) for e, p in zip(expected, block.parameters, strict=True)]
                kinds.add((type(block), block.whole))
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
        assert kinds == {
            1, 2, 3, (VectorBlock, True), (VectorBlock, False), (FreeBlock, False)
        }  # fmt: skip

    def test_a_gradient_that_is_missing_counts_as_zero(self, estimator):
        inverse = KroneckerInverse(estimator.blocks)
        inverse.refresh(0.1)
        for i, block in enumerate(estimator.blocks):
            first, *rest = block.parameters
            gradient = torch.randn_like(first)
            found = inverse.apply({first: gradient})
            assert set(found) == {first}
            whole = _applied(inverse, i, [gradient, *(torch.zeros_like(p) for p in rest)])
            torch.testing.assert_close(found[first], whole[0], rtol=1e-12, atol=1e-14)

    def test_a_block_without_moments_leaves_its_gradient(self):
        model = mlp()
        model.add_module("idle", nn.Linear(3, 2))
        used = model[:5]
        model.forward = lambda x: used(x)
        estimator = measured(model, torch.randn(5, 3), family="categorical")
        inverse = KroneckerInverse(estimator.blocks)
        inverse.refresh(0.1)
        gradients = [torch.randn(2, 3), torch.randn(2)]
        found = _applied(inverse, 3, gradients)
        assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))

    def test_equal_shapes_together_are_as_one_by_one(self):
        model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
        blocks = measured(model, torch.randn(7, 4), family="categorical").blocks
        together = KroneckerInverse(blocks)
        together.refresh(0.01)
        for i, block in enumerate(blocks):
            alone = KroneckerInverse([block])
            alone.refresh(0.01)
            for a, b in zip(alone.inverses[0], together.inverses[i], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)

    def test_damping_does_not_stay_in_the_moments(self, estimator):
        """A public code base damped its cached factors in place, again at every refresh."""
        before = [m.clone() for m in moments(estimator)]
        inverse = KroneckerInverse(estimator.blocks)
        inverse.refresh(0.1)
        first = [t.clone() for block in inverse.inverses for t in block]
        inverse.refresh(10.0)
        inverse.refresh(0.1)
        assert all(torch.equal(a, b) for a, b in zip(before, moments(estimator), strict=True))
        again = [t for block in inverse.inverses for t in block]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    def test_large_damping_is_the_gradient_over_it(self, estimator):
        inverse = KroneckerInverse(estimator.blocks)
        inverse.refresh(1e12)
        for i, block in enumerate(estimator.blocks):
            gradients = [torch.randn_like(p) for p in block.parameters]
            for found, gradient in zip(_applied(inverse, i, gradients), gradients, strict=True):
                torch.testing.assert_close(found * 1e12, gradient, rtol=1e-3, atol=1e-3)


class TestFailures:
    def _blocks(self):
        estimator = measured(mlp(), torch.randn(9, 3), family="categorical")
        return estimator.blocks

    def test_are_counted_and_leave_the_old_inverse(self):
        blocks = self._blocks()
        inverse = KroneckerInverse(blocks)
        inverse.refresh(0.1)
        old = [[t.clone() for t in block] for block in inverse.inverses]
        healthy = blocks[1].moments[1]
        blocks[1].moments[1] = torch.full_like(healthy, float("nan"))
        blocks[2].moments[0] *= 2
        for count in (1, 2):
            inverse.refresh(0.1)
            assert inverse.kept == count
            assert inverse.failures == [0, count, 0]
            assert all(torch.equal(a, b) for a, b in zip(inverse.inverses[1], old[1], strict=True))
        assert not torch.equal(inverse.inverses[2][0], old[2][0])  # others go on
        with pytest.raises(NumericalError, match=r"\(5, 4\), \(5,\).*3 times in a row.*damping="):
            inverse.refresh(0.1)
        blocks[1].moments[1] = healthy
        inverse.refresh(0.1)
        assert inverse.failures == [0, 0, 0]
        assert all(torch.allclose(a, b) for a, b in zip(inverse.inverses[1], old[1], strict=True))

    def test_without_an_old_inverse_raise_at_once(self):
        blocks = self._blocks()
        blocks[0].moments[0] = torch.full((4, 4), float("inf"))
        with pytest.raises(NumericalError, match="could not be inverted"):
            KroneckerInverse(blocks).refresh(0.1)

    def test_of_single_precision_are_climbed_over(self, monkeypatch):
        real, calls = torch.linalg.cholesky_ex, []

        def broken(matrix, **options):
            factor, info = real(matrix, **options)
            calls.append(matrix.dtype)
            return factor, info + (matrix.dtype == torch.float32)

        model = mlp().float()
        blocks = measured(model, torch.randn(9, 3).float(), family="categorical").blocks
        expected = KroneckerInverse(blocks)
        expected.refresh(0.1)
        assert expected.climbed == 0
        monkeypatch.setattr(torch.linalg, "cholesky_ex", broken)
        inverse = KroneckerInverse(blocks)
        inverse.refresh(0.1)
        assert inverse.climbed == 6
        assert inverse.kept == 0
        for ours, theirs in zip(inverse.inverses, expected.inverses, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert a.dtype == torch.float32
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)

    def test_of_one_group_keep_the_whole_layer(self, monkeypatch):
        model = nn.Sequential(nn.Conv1d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(4, 3))
        estimator = measured(model, torch.randn(5, 4, 2), family="categorical")
        block = block_of(estimator, model[0].weight)
        inverse = KroneckerInverse(estimator.blocks)
        inverse.refresh(0.1)
        old = copy.deepcopy(inverse.inverses[0])
        block.moments[0][1] = float("nan")
        inverse.refresh(0.1)
        assert inverse.failures == [1, 0]
        assert all(torch.equal(a, b) for a, b in zip(inverse.inverses[0], old, strict=True))

    def test_a_layer_that_sees_zeros_is_damped(self):
        blocks = self._blocks()
        for moment in blocks[0].moments:
            moment.zero_()
        inverse = KroneckerInverse(blocks)
        inverse.refresh(0.25)
        assert inverse.kept == 0
        gradients = [torch.randn(4, 3), torch.randn(4)]
        for found, gradient in zip(_applied(inverse, 0, gradients), gradients, strict=True):
            torch.testing.assert_close(found, 4 * gradient)  # 1/λ


class TestState:
    def test_goes_on_with_the_inverses_in_use(self, estimator):
        inverse = KroneckerInverse(estimator.blocks)
        inverse.refresh(0.1)
        other = KroneckerInverse(estimator.blocks)
        other.load_state_dict(copy.deepcopy(inverse.state_dict()))
        assert other.damping == 0.1
        for i, block in enumerate(estimator.blocks):
            gradients = [torch.randn_like(p) for p in block.parameters]
            pairs = zip(_applied(inverse, i, gradients), _applied(other, i, gradients), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


def test_the_ladder_is_that_of_linalg():
    assert inverses.JITTERS[0] == 0  # float64 is tried before any jitter
