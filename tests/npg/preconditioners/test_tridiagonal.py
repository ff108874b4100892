"""The block-tridiagonal inverse against dense matrices of explicit Kronecker products."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from npg.errors import ConfigurationError, NumericalError
from npg.preconditioners import TridiagonalInverse


@dataclass(frozen=True)
class Statistics:
    """E[x_l x_mᵀ] of all layers l, m: the joint second moment of inputs, and that of signals."""

    inputs: list[list[Tensor]]
    signals: list[list[Tensor]]

    def inverse(self, damping: float | Tensor) -> TridiagonalInverse:
        return TridiagonalInverse(*self.neighbours(), damping)

    def neighbours(self) -> tuple[list[Tensor], ...]:
        layers = range(len(self.inputs))
        return (
            [self.inputs[i][i] for i in layers],
            [self.signals[i][i] for i in layers],
            [self.inputs[i][i + 1] for i in layers[:-1]],
            [self.signals[i][i + 1] for i in layers[:-1]],
        )

    def damped(self, damping: float) -> "Statistics":
        """π from its definition; damping goes to the diagonal factors alone."""
        inputs = [list(row) for row in self.inputs]
        signals = [list(row) for row in self.signals]
        for i, (a_row, g_row) in enumerate(zip(self.inputs, self.signals, strict=True)):
            a, g = a_row[i], g_row[i]
            pi = math.sqrt((a.trace() / len(a)) / (g.trace() / len(g)))
            inputs[i][i] = a + pi * math.sqrt(damping) * torch.eye(len(a))
            signals[i][i] = g + math.sqrt(damping) / pi * torch.eye(len(g))
        return Statistics(inputs, signals)

    def dense(self) -> list[list[Tensor]]:
        """Blocks G_lm ⊗ A_lm of F̃."""
        layers = range(len(self.inputs))
        return [[torch.kron(self.signals[i][j], self.inputs[i][j]) for j in layers] for i in layers]

    def to(self, dtype: torch.dtype) -> "Statistics":
        return Statistics(
            *([[m.to(dtype) for m in row] for row in s] for s in (self.inputs, self.signals))
        )


def assemble(blocks: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.cat([torch.cat(list(row), 1) for row in blocks])


def moments(vectors: Sequence[Tensor], weights: Tensor | None = None) -> list[list[Tensor]]:
    if weights is None:
        weights = torch.full((len(vectors[0]),), 1 / len(vectors[0]))
    return [[torch.einsum("n,ni,nj->ij", weights, u, v) for v in vectors] for u in vectors]


def correlated(sizes: Sequence[int], samples: int = 40) -> list[Tensor]:
    """Vectors per layer that depend on those of the layer before, and a little on the first."""
    layers = [torch.randn(samples, sizes[0])]
    for size in sizes[1:]:
        sources = (layers[-1], 0.3 * layers[0])
        mixed = sum(source @ torch.randn(source.shape[1], size) for source in sources)
        layers.append(mixed / 2 + torch.randn(samples, size))
    return layers


def statistics(
    input_sizes: Sequence[int] = (4, 3, 5, 2),
    signal_sizes: Sequence[int] = (3, 4, 2, 3),
    samples: int = 40,
) -> Statistics:
    return Statistics(
        moments(correlated(input_sizes, samples)), moments(correlated(signal_sizes, samples))
    )


def gradients(given: Statistics) -> list[Tensor]:
    layers = range(len(given.inputs))
    dtype = given.inputs[0][0].dtype
    return [
        torch.randn(len(given.signals[i][i]), len(given.inputs[i][i]), dtype=dtype) for i in layers
    ]


def applied(inverse: TridiagonalInverse, given: Statistics) -> Tensor:
    """The inverse as a dense matrix, one product per unit vector."""
    like = gradients(given)
    columns = []
    for unit in torch.eye(sum(g.numel() for g in like)):
        pieces = unit.split([g.numel() for g in like])
        products = inverse.apply([p.view_as(g) for p, g in zip(pieces, like, strict=True)])
        columns.append(torch.cat([p.flatten() for p in products]))
    return torch.stack(columns, 1)


def transitions(given: Statistics) -> list[Tensor]:
    """Ψ_l = F̃_{l,l+1} F̃_{l+1,l+1}⁻¹, from the Kronecker products themselves."""
    dense = given.dense()
    return [dense[i][i + 1] @ torch.linalg.inv(dense[i + 1][i + 1]) for i in range(len(dense) - 1)]


def block_diagonal(given: Statistics) -> Tensor:
    dense = given.dense()
    return torch.block_diag(*(torch.linalg.inv(dense[i][i]) for i in range(len(dense))))


@pytest.mark.parametrize("damping", [0.0, 1e-3, 1.0])
def test_is_the_product_of_the_definition(damping: float) -> None:
    """Ξᵀ Λ Ξ of dense blocks."""
    given = statistics()
    damped = given.damped(damping)
    dense, predict = damped.dense(), transitions(damped)
    offsets = torch.tensor([0, *(len(dense[i][i]) for i in range(4))]).cumsum(0)
    xi = torch.eye(int(offsets[-1]))
    covariances = [dense[3][3]]
    for i in (2, 1, 0):
        xi[offsets[i] : offsets[i + 1], offsets[i + 1] : offsets[i + 2]] = -predict[i]
        covariances.insert(0, dense[i][i] - predict[i] @ dense[i + 1][i + 1] @ predict[i].T)
    lambda_ = torch.block_diag(*(torch.linalg.inv(covariance) for covariance in covariances))
    expected = xi.T @ lambda_ @ xi
    found = applied(given.inverse(damping), given)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    torch.testing.assert_close(found, found.T, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    assert torch.linalg.eigvalsh(found).min() > 0


@pytest.mark.parametrize("damping", [0.0, 0.05])
def test_inverts_the_chain_that_shares_its_neighbours_covariances(damping: float) -> None:
    """F̂ of a Markov chain: what is further apart is correlated by way of what is between."""
    given = statistics()
    damped = given.damped(damping)
    dense, predict = damped.dense(), transitions(damped)
    chain = [list(row) for row in dense]
    for distance in (2, 3):
        for i in range(4 - distance):
            chain[i][i + distance] = predict[i] @ chain[i + 1][i + distance]
            chain[i + distance][i] = chain[i][i + distance].T
    expected = torch.linalg.inv(assemble(chain))
    first, last = len(dense[0][0]), len(dense[3][3])
    assert expected[:first, -last:].abs().max() < 1e-8 * expected.abs().max()  # tridiagonal
    found = applied(given.inverse(damping), given)
    assert torch.linalg.norm(found - expected) < 1e-8 * torch.linalg.norm(expected)


def test_is_exact_where_inputs_and_signals_are_chains_themselves() -> None:
    """Then F̃, all of its blocks G_lm ⊗ A_lm, has the block-tridiagonal inverse."""
    given = statistics()
    for joint in (given.inputs, given.signals):
        for distance in (2, 3):
            for i in range(4 - distance):
                j = i + distance
                gain = joint[i][i + 1] @ torch.linalg.inv(joint[i + 1][i + 1])
                joint[i][j] = gain @ joint[i + 1][j]
                joint[j][i] = joint[i][j].T
    expected = torch.linalg.inv(assemble(given.dense()))
    found = applied(given.inverse(0.0), given)
    assert torch.linalg.norm(found - expected) < 1e-8 * torch.linalg.norm(expected)
    assert torch.linalg.norm(block_diagonal(given) - expected) > 0.1 * torch.linalg.norm(expected)


def network_statistics(sizes: Sequence[int], samples: int) -> Statistics:
    """Factors of the exact Fisher of a tanh network with a softmax, label by label."""
    weights = [
        torch.cat([torch.randn(m, n) / math.sqrt(n), 0.1 * torch.randn(m, 1)], 1)
        for n, m in pairwise(sizes)
    ]

    def forward(x: Tensor, shifts: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        seen = []
        for weight, shift in zip(weights, shifts, strict=True):
            seen.append(torch.cat([x, torch.ones(1)]))
            output = weight @ seen[-1] + shift
            x = torch.tanh(output)
        return output.log_softmax(0), seen

    zeros = [torch.zeros(len(weight)) for weight in weights]
    x = torch.randn(samples, sizes[0])
    log_probabilities, inputs = vmap(lambda x: forward(x, zeros))(x)
    signals = vmap(lambda x: jacrev(lambda shifts: forward(x, shifts)[0])(zeros))(x)
    weight = log_probabilities.exp().flatten() / samples
    return Statistics(moments(inputs), moments([s.flatten(0, 1) for s in signals], weight))


@pytest.mark.parametrize("damping", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("sizes", [(6, 8, 6, 4), (5, 8, 7, 6, 3)])
def test_is_nearer_to_the_full_inverse_than_the_block_diagonal(
    sizes: Sequence[int], damping: float
) -> None:
    """Martens and Grosse's section 4: the inverse of F̃ itself, with the same damping."""
    given = network_statistics(sizes, 60)
    damped = given.damped(damping)
    full = torch.linalg.inv(assemble(damped.dense()))
    tridiagonal = torch.linalg.norm(applied(given.inverse(damping), given) - full)
    diagonal = torch.linalg.norm(block_diagonal(damped) - full)
    assert tridiagonal < 0.9 * diagonal


def test_one_layer_is_its_block() -> None:
    given = statistics((4,), (3,))
    found = applied(given.inverse(0.1), given)
    torch.testing.assert_close(found, block_diagonal(given.damped(0.1)))


def test_layers_without_anything_in_common_are_their_blocks() -> None:
    """It is enough that either the inputs or the signals are uncorrelated."""
    given = statistics()
    for name in ("inputs", "signals"):
        joint = getattr(given, name)
        zeroed = [[m * (i == j) for j, m in enumerate(row)] for i, row in enumerate(joint)]
        alone = replace(given, **{name: zeroed})
        found = applied(alone.inverse(0.1), alone)
        expected = block_diagonal(alone.damped(0.1))
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_float32_is_close_to_float64() -> None:
    given = statistics(samples=200)
    inverse, rounded = given.inverse(1e-2), given.to(torch.float32).inverse(1e-2)
    assert (inverse.precision, rounded.precision) == (torch.float64, torch.float32)
    assert inverse.jitter == rounded.jitter == 0.0
    like = gradients(given)
    expected = inverse.apply(like)
    for precise, found in zip(expected, rounded.apply([g.float() for g in like]), strict=True):
        assert found.dtype == torch.float32
        assert torch.linalg.norm(found.double() - precise) < 1e-4 * torch.linalg.norm(precise)


def test_float32_that_is_not_enough_is_done_in_float64() -> None:
    """3 samples, so that Σ is singular but for the damping, which is small."""
    given = statistics(samples=3)
    damping = 1e-8
    rounded = given.to(torch.float32)
    inverse = rounded.inverse(damping)
    assert inverse.precision == torch.float64
    assert inverse.jitter == 0.0
    like = gradients(given)
    found = inverse.apply([g.float() for g in like])
    # The statistics' own rounding is not ours: compare with float64 on the rounded ones.
    expected = rounded.to(torch.float64).inverse(damping).apply(like)
    for precise, ours in zip(expected, found, strict=True):
        assert ours.dtype == torch.float32
        assert torch.linalg.norm(ours.double() - precise) < 1e-3 * torch.linalg.norm(precise)


@pytest.mark.parametrize("damping", [1e-2, 1e-6, 1e-10])
def test_singular_statistics_with_damping(damping: float) -> None:
    """One sample: all factors have rank one, neighbours are perfectly correlated.

    Σ_0 is then known by hand, which matters where dense arithmetic has lost all digits. With
    A_l = |a_l|² P + d_l I and A_01 = a_0 a_1ᵀ, C^A = a_0 (a_1ᵀ A_1⁻¹ a_1) a_0ᵀ is
    |a_0|² |a_1|² / (|a_1|² + d_1) P, P the projector on a_0; the same for G.
    """
    given = statistics(samples=1)
    inverse = given.inverse(damping)
    assert inverse.jitter == 0.0

    projectors, along, across, explained = [], [], [], []
    for mine, other in ((given.signals, given.inputs), (given.inputs, given.signals)):
        norms = [float(mine[i][i].trace()) for i in (0, 1)]
        others = [float(other[i][i].trace()) for i in (0, 1)]
        sizes = [(len(mine[i][i]), len(other[i][i])) for i in (0, 1)]
        added = [
            math.sqrt(damping * (norm / size[0]) / (theirs / size[1]))
            for norm, theirs, size in zip(norms, others, sizes, strict=True)
        ]
        projector = mine[0][0] / norms[0]
        projectors.append((projector, torch.eye(sizes[0][0]) - projector))
        along.append(norms[0] + added[0])
        across.append(added[0])
        explained.append(norms[0] * norms[1] / (norms[1] + added[1]))
    expected = (
        torch.kron(projectors[0][0], projectors[1][0])
        / (along[0] * along[1] - explained[0] * explained[1])
        + torch.kron(projectors[0][0], projectors[1][1]) / (along[0] * across[1])
        + torch.kron(projectors[0][1], projectors[1][0]) / (across[0] * along[1])
        + torch.kron(projectors[0][1], projectors[1][1]) / (across[0] * across[1])
    )
    found = applied(inverse, given)[: len(expected), : len(expected)]
    assert torch.linalg.norm(found - expected) < 1e-8 * torch.linalg.norm(expected)


def test_a_layer_without_signal_has_the_damping_alone() -> None:
    given = statistics()
    dead = [
        [m * (i != 1 and j != 1) for j, m in enumerate(row)] for i, row in enumerate(given.signals)
    ]
    like = gradients(given)
    found = replace(given, signals=dead).inverse(0.1).apply(like)
    torch.testing.assert_close(found[1], like[1] / 0.1, rtol=1e-3, atol=1e-3)


def test_indefinite_statistics_get_the_least_jitter_that_helps() -> None:
    """One eigenvalue is −1e-7: 1e-8 of the mean eigenvalue does not lift it, 1e-6 does."""
    given = statistics()
    broken = given.inputs[1][1]
    values, vectors = torch.linalg.eigh(broken)
    values[0] = -1e-7 * broken.trace() / len(broken)
    inputs = [list(row) for row in given.inputs]
    inputs[1][1] = vectors @ torch.diag(values) @ vectors.T
    alone = [[m * (i == j) for j, m in enumerate(row)] for i, row in enumerate(inputs)]
    inverse = replace(given, inputs=alone).inverse(0.0)
    assert inverse.jitter == 1e-6
    assert all(torch.isfinite(g).all() for g in inverse.apply(gradients(given)))


def test_a_failed_eigendecomposition_is_repeated_in_float64(monkeypatch) -> None:
    given = statistics(samples=200)
    eigh = torch.linalg.eigh

    def unstable(matrix: Tensor) -> tuple[Tensor, Tensor]:
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("eigh failed to converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", unstable)
    assert given.to(torch.float32).inverse(0.1).precision == torch.float64


def test_statistics_that_do_not_belong_together_are_refused() -> None:
    """Correlations above 1: no jitter makes a covariance of that."""
    given = statistics()
    inputs, signals, input_pairs, signal_pairs = given.neighbours()
    with pytest.raises(NumericalError, match="same samples"):
        TridiagonalInverse(
            inputs, signals, [10 * m for m in input_pairs], [10 * m for m in signal_pairs], 0.01
        )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("which", "name"), [(0, "input"), (1, "signal"), (2, "input")])
def test_what_is_not_finite_is_refused(which: int, name: str, bad: float) -> None:
    given = statistics().neighbours()
    given[which][1][0, 1] = bad
    with pytest.raises(NumericalError, match=f"{name} statistics are not finite"):
        TridiagonalInverse(*given, 0.1)


def test_no_damping_for_singular_factors_is_refused() -> None:
    zero = torch.zeros(2, 2)
    with pytest.raises(NumericalError, match="raise damping"):
        TridiagonalInverse([zero], [zero], [], [], 0.0)


def test_what_is_no_chain_is_refused() -> None:
    inputs, signals, input_pairs, signal_pairs = statistics().neighbours()
    for damping in (-1.0, math.nan, torch.tensor(-1.0)):
        with pytest.raises(ConfigurationError, match="damping"):
            TridiagonalInverse(inputs, signals, input_pairs, signal_pairs, damping)
    with pytest.raises(ConfigurationError, match="at least one layer"):
        TridiagonalInverse([], [], [], [], 0.1)
    with pytest.raises(ConfigurationError, match="4 and 3"):
        TridiagonalInverse(inputs, signals[:3], input_pairs, signal_pairs, 0.1)
    with pytest.raises(ConfigurationError, match="input_pairs must have shapes"):
        TridiagonalInverse(inputs, signals, input_pairs[:2], signal_pairs, 0.1)
    transposed = [m.T for m in signal_pairs]
    with pytest.raises(ConfigurationError, match="signal_pairs must have shapes"):
        TridiagonalInverse(inputs, signals, input_pairs, transposed, 0.1)


def test_inputs_and_gradients_stay_as_they_were() -> None:
    given = statistics()
    before = [m.clone() for matrices in given.neighbours() for m in matrices]
    like = gradients(given)
    copies = [g.clone() for g in like]
    results = given.inverse(torch.tensor(0.1)).apply(like)
    after = [m for matrices in given.neighbours() for m in matrices]
    for old, new in zip(before + copies, after + like, strict=True):
        assert torch.equal(old, new)
    results[0].zero_()
    assert torch.equal(like[0], copies[0])
    expected = given.inverse(0.1).apply(like)
    torch.testing.assert_close(given.inverse(torch.tensor(0.1)).apply(like), expected)


def test_apply_reads_nothing_from_the_device() -> None:
    """On the meta device there is nothing to read."""
    given = statistics()
    inverse = given.inverse(0.1)
    inverse.solvers = [
        replace(s, left=s.left.to("meta"), right=s.right.to("meta"), spectrum=s.spectrum.to("meta"))
        for s in inverse.solvers
    ]
    inverse.transitions = [(g.to("meta"), a.to("meta")) for g, a in inverse.transitions]
    like = [g.to("meta") for g in gradients(given)]
    assert [r.shape for r in inverse.apply(like)] == [g.shape for g in like]


def test_half_precision_comes_back() -> None:
    given = statistics(samples=200)
    like = [g.bfloat16() for g in gradients(given)]
    found = given.to(torch.bfloat16).to(torch.float32).inverse(0.1).apply(like)
    assert {g.dtype for g in found} == {torch.bfloat16}
