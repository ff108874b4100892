"""Kronecker products against the matrices that torch.kron forms."""

import pytest
import torch
from scipy.linalg import eigh

from npg.linalg import (
    KroneckerSolver,
    factored_damping,
    simultaneous_diagonalisation,
    symmetrised,
)


def positive(size: int, rank: int | None = None) -> torch.Tensor:
    factor = torch.randn(size, size + 3 if rank is None else rank)
    return factor @ factor.T


def test_solves_with_the_difference() -> None:
    left, right = positive(4), positive(3)
    left_removed, right_removed = 0.02 * positive(4), 0.02 * positive(3, rank=1)
    difference = torch.kron(left, right) - torch.kron(left_removed, right_removed)
    solver = KroneckerSolver.of_difference(
        torch.linalg.cholesky(left), torch.linalg.cholesky(right), left_removed, right_removed
    )
    matrix = torch.randn(4, 3)
    expected = torch.linalg.solve(difference, matrix.flatten()).view(4, 3)
    torch.testing.assert_close(solver.solve(matrix), expected, rtol=1e-9, atol=1e-10)


def test_the_spectrum_is_that_of_the_difference() -> None:
    """SciPy's generalised eigenvalues, of a positive and of an indefinite difference."""
    left, right, left_removed, right_removed = (positive(n) for n in (3, 2, 3, 2))
    for scale, definite in ((1e-3, True), (10.0, False)):
        solver = KroneckerSolver.of_difference(
            torch.linalg.cholesky(left),
            torch.linalg.cholesky(right),
            scale * left_removed,
            right_removed,
        )
        product = torch.kron(left, right)
        difference = product - scale * torch.kron(left_removed, right_removed)
        expected = torch.from_numpy(eigh(difference.numpy(), product.numpy(), eigvals_only=True))
        torch.testing.assert_close(solver.spectrum.flatten().sort().values, expected)
        assert bool((torch.linalg.eigvalsh(difference) > 0).all()) is definite
        assert bool((solver.spectrum > 0).all()) is definite


def test_solves_with_the_product() -> None:
    left, right, matrix = positive(4), positive(3), torch.randn(4, 3)
    solver = KroneckerSolver.of_product(torch.linalg.cholesky(left), torch.linalg.cholesky(right))
    expected = torch.linalg.solve(torch.kron(left, right), matrix.flatten()).view(4, 3)
    torch.testing.assert_close(solver.solve(matrix), expected, rtol=1e-9, atol=1e-10)


def test_another_type() -> None:
    left, right, matrix = positive(4), positive(3), torch.randn(4, 3)
    solver = KroneckerSolver.of_product(torch.linalg.cholesky(left), torch.linalg.cholesky(right))
    rounded = solver.to(torch.float32).solve(matrix.float())
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), solver.solve(matrix), rtol=1e-3, atol=1e-4)


def test_simultaneous_diagonalisation() -> None:
    matrix, other = positive(5), symmetrised(torch.randn(5, 5))
    basis, values = simultaneous_diagonalisation(torch.linalg.cholesky(matrix), other)
    torch.testing.assert_close(basis.T @ matrix @ basis, torch.eye(5))
    torch.testing.assert_close(basis.T @ other @ basis, torch.diag(values))
    expected = eigh(other.numpy(), matrix.numpy(), eigvals_only=True)
    torch.testing.assert_close(values, torch.from_numpy(expected))


def test_symmetrised_is_a_new_matrix() -> None:
    matrix = torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    assert symmetrised(matrix).tolist() == [[1.0, 3.0], [3.0, 3.0]]
    symmetrised(matrix).zero_()
    assert matrix.tolist() == [[1.0, 2.0], [4.0, 3.0]]


def test_damping_by_hand() -> None:
    """Mean eigenvalues 18/2 and 3/3: π = 3; √λ = 0.1 gives 0.3 and 0.1/3."""
    shares = factored_damping(torch.diag(torch.tensor([10.0, 8.0])), torch.eye(3), 0.01)
    assert [float(share) for share in shares] == pytest.approx([0.3, 0.1 / 3], rel=1e-14)


def test_damping_makes_the_cross_terms_least() -> None:
    """No other π has a smaller tr(√λ/π A ⊗ I + π√λ I ⊗ B)."""
    left, right, damping = positive(4), positive(3), 0.2

    def cross_terms(for_left: float, for_right: float) -> float:
        return float(
            torch.kron(left, for_right * torch.eye(3)).trace()
            + torch.kron(for_left * torch.eye(4), right).trace()
        )

    shares = [float(share) for share in factored_damping(left, right, damping)]
    assert shares[0] * shares[1] == pytest.approx(damping)
    least = cross_terms(*shares)
    for scale in (0.5, 0.9, 1.1, 2.0):
        assert cross_terms(shares[0] * scale, shares[1] / scale) > least


def test_damping_of_a_factor_without_signal_is_that_of_the_product() -> None:
    """A ⊗ 0 + λI is λI."""
    left, zero = positive(3), torch.zeros(2, 2)
    for first, second in ((left, zero), (zero, left), (zero, zero)):
        shares = factored_damping(first, second, torch.tensor(0.04))
        damped = torch.kron(
            first + shares[0] * torch.eye(len(first)), second + shares[1] * torch.eye(len(second))
        )
        expected = 0.04 * torch.eye(len(damped))
        torch.testing.assert_close(damped, expected, rtol=1e-4, atol=1e-5)


def test_no_damping() -> None:
    assert [float(s) for s in factored_damping(positive(3), positive(2), 0.0)] == [0.0, 0.0]
