"""Kronecker products that are never formed: shared damping, and the inverse of a difference.

Flat vectors are matrices in row-major order, so that (A ⊗ B) vec(X) = vec(A X Bᵀ).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def symmetrised(matrix: Tensor) -> Tensor:
    """Returns (M + Mᵀ) / 2, a new tensor."""
    return (matrix + matrix.mT) / 2


def factored_damping(left: Tensor, right: Tensor, damping: float | Tensor) -> tuple[Tensor, Tensor]:
    """Shares λ between two Kronecker factors: A ⊗ B + λI ≈ (A + π√λ I) ⊗ (B + √λ/π I).

    π = √((tr A / d_A) / (tr B / d_B)), the choice that keeps the cross terms √λ/π A ⊗ I and
    π√λ I ⊗ B least in trace norm. It is kept within 10^±6: a factor that is zero leaves λI.

    Args:
        left: A [n, n], positive semi-definite; or one per group [g, n, n], or a diagonal [n].
        right: B [m, m], positive semi-definite; or one per group [g, m, m].
        damping: λ ≥ 0, in the units of A ⊗ B.

    Returns:
        (π√λ, √λ/π), scalar tensors or one entry per group [g], to add to the diagonals.

    Reference:
        Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate
        curvature", 2015, section 6.3.
    """
    pi = (_mean_eigenvalue(left) / _mean_eigenvalue(right)).sqrt().clamp(1e-6, 1e6)
    root = damping**0.5
    return pi * root, root / pi


def _mean_eigenvalue(matrix: Tensor) -> Tensor:
    eigenvalues = matrix if matrix.ndim == 1 else matrix.diagonal(dim1=-2, dim2=-1)
    return eigenvalues.mean(-1).clamp(min=torch.finfo(matrix.dtype).tiny)


@dataclass(frozen=True)
class KroneckerSolver:
    """(A ⊗ B − C ⊗ D)⁻¹ = (K_A ⊗ K_B) diag(w)⁻¹ (K_A ⊗ K_B)ᵀ.

    K_A is a basis in which A is the identity and C is diagonal, K_B one for B and D.

    Attributes:
        left: K_A [n, n].
        right: K_B [m, m].
        spectrum: w [n, m] = 1 − s_A s_Bᵀ, s the diagonals of C and D in those bases: the
            eigenvalues of the difference, relative to A ⊗ B. The difference is positive definite
            where all are positive.

    Reference:
        Martens and Grosse 2015, appendix B.
    """

    left: Tensor
    right: Tensor
    spectrum: Tensor

    @classmethod
    def of_product(cls, left: Tensor, right: Tensor) -> "KroneckerSolver":
        """Solver of A ⊗ B alone.

        Args:
            left: Lower Cholesky factor of A [n, n].
            right: Lower Cholesky factor of B [m, m].

        Returns:
            The solver.
        """
        bases = [
            torch.linalg.solve_triangular(
                factor.mT, torch.eye(len(factor), dtype=factor.dtype, device=factor.device),
                upper=True,
            )
            for factor in (left, right)
        ]  # fmt: skip
        return cls(bases[0], bases[1], left.new_ones(len(left), len(right)))

    @classmethod
    def of_difference(
        cls, left: Tensor, right: Tensor, left_removed: Tensor, right_removed: Tensor
    ) -> "KroneckerSolver":
        """Solver of A ⊗ B − C ⊗ D.

        Args:
            left: Lower Cholesky factor of A [n, n].
            right: Lower Cholesky factor of B [m, m].
            left_removed: C [n, n], symmetric.
            right_removed: D [m, m], symmetric.

        Returns:
            The solver; its ``spectrum`` tells whether the difference is positive definite.
        """
        left_basis, left_values = simultaneous_diagonalisation(left, left_removed)
        right_basis, right_values = simultaneous_diagonalisation(right, right_removed)
        return cls(left_basis, right_basis, 1 - torch.outer(left_values, right_values))

    def to(self, dtype: torch.dtype) -> "KroneckerSolver":
        """The same in another floating-point type."""
        return KroneckerSolver(self.left.to(dtype), self.right.to(dtype), self.spectrum.to(dtype))

    def solve(self, matrix: Tensor) -> Tensor:
        """Returns (A ⊗ B − C ⊗ D)⁻¹ vec(X) as a matrix [n, m], for X [n, m]."""
        inner = self.left.mT @ matrix @ self.right / self.spectrum
        return self.left @ inner @ self.right.mT


def simultaneous_diagonalisation(factor: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Finds K with Kᵀ A K = I and Kᵀ C K = diag(s), from A = L Lᵀ.

    Args:
        factor: L [n, n], lower triangular with a positive diagonal.
        other: C [n, n], symmetric.

    Returns:
        K [n, n] and s [n], ascending.
    """
    half = torch.linalg.solve_triangular(factor, other, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.mT, upper=False)  # L⁻¹ C L⁻ᵀ
    values, vectors = torch.linalg.eigh(symmetrised(whitened))
    return torch.linalg.solve_triangular(factor.mT, vectors, upper=True), values
