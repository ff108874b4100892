"""The block-tridiagonal inverse where arithmetic or its arguments are not what one wishes for."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from npg.errors import ConfigurationError, NumericalError
from npg.preconditioners import TridiagonalInverse
from tests.npg.preconditioners.chain_statistics import applied, gradients, statistics


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
