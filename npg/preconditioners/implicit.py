"""Inverses of a matrix that is known by its products: conjugate gradient, or formed densely."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from npg.curvature import CurvatureMatrix
from npg.errors import ConfigurationError
from npg.linalg import cg

DENSE_LIMIT = 20_000


@dataclass(frozen=True)
class Solution:
    """x ≈ (C + λI)⁻¹ b, with what step rules and logs need to know of it.

    Attributes:
        x: The preconditioned vector [P].
        quadratic: xᵀCx, without damping.
        iterations: Products with C that it took.
        residual: ‖b − (C + λI) x‖ / ‖b‖.
        reason: Why the solver stopped.
    """

    x: Tensor
    quadratic: float
    iterations: int
    residual: float
    reason: str


class Inverse(Protocol):
    """A way to apply the inverse of a damped matrix."""

    def solve(self, matrix: CurvatureMatrix, damping: float, b: Tensor) -> Solution:
        """Returns x ≈ (C + λI)⁻¹ b."""


@dataclass(frozen=True)
class ConjugateGradientInverse:
    """By conjugate gradient.

    Attributes:
        max_iterations: Bound on the products. More follow small eigenvalues better; 10 to 25 is
            usual.
        tolerance: Stops at this relative residual. 0 always takes all iterations.
        progress_tolerance: Martens' stop on relative progress, see :func:`npg.linalg.cg`.
        preconditioner: v ↦ M⁻¹v, M near C + λI.
    """

    max_iterations: int = 15
    tolerance: float = 1e-5
    progress_tolerance: float | None = None
    preconditioner: Callable[[Tensor], Tensor] | None = None

    def solve(
        self,
        matrix: CurvatureMatrix,
        damping: float,
        b: Tensor,
        *,
        start: Tensor | None = None,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Solution:
        """Returns x ≈ (C + λI)⁻¹ b.

        Args:
            matrix: C [P, P].
            damping: λ.
            b: Right-hand side [P].
            start: Where to begin [P], for one product more. Default: zero.
            callback: Sees every iterate, as in :func:`npg.linalg.cg`.

        Returns:
            The solution, or what was reached.
        """
        result = cg(
            matrix + damping,
            b,
            x0=start,
            preconditioner=self.preconditioner,
            max_iterations=self.max_iterations,
            tolerance=self.tolerance,
            progress_tolerance=self.progress_tolerance,
            callback=callback,
        )
        products = result.iterations + (start is not None)
        # C x = b − r − λ x comes free from the residual r.
        product = (b - result.residual).sub_(result.x, alpha=damping)
        quadratic = float(result.x @ product)
        return Solution(result.x, quadratic, products, result.residual_norm, result.reason)


@dataclass(frozen=True)
class DenseInverse:
    """By forming the matrix in P products and factorising it in float64: for small models."""

    def solve(self, matrix: CurvatureMatrix, damping: float, b: Tensor) -> Solution:
        """Returns x = (C + λI)⁻¹ b.

        Args:
            matrix: C [P, P].
            damping: λ.
            b: Right-hand side [P].

        Returns:
            The solution. A singular C at λ = 0 gives the solution of least norm.

        Raises:
            ConfigurationError: If P is above 20,000.
        """
        size = matrix.shape[0]
        if size > DENSE_LIMIT:
            raise ConfigurationError(
                f"a dense matrix of {size} parameters is too large (limit {DENSE_LIMIT}): "
                'use curvature="fisher-cg"'
            )
        dense = matrix.to_dense().double()
        damped = dense + damping * torch.eye(size, dtype=dense.dtype, device=dense.device)
        factor, failed = torch.linalg.cholesky_ex(damped)
        right = b.double()
        # Rounding can hide a null space from the factorisation, which then divides by it.
        rounding = size * torch.finfo(b.dtype).eps
        pivot = float(factor.diagonal().min()) ** 2
        if int(failed) or (damping == 0 and pivot <= rounding * float(damped.diagonal().max())):
            x = torch.linalg.pinv(damped, rtol=rounding, hermitian=True) @ right
        else:
            x = torch.cholesky_solve(right.unsqueeze(1), factor).squeeze(1)
        norm = torch.linalg.vector_norm(right)
        residual = float(torch.linalg.vector_norm(right - damped @ x) / norm) if norm > 0 else 0.0
        return Solution(x.to(b), float(x @ (dense @ x)), size, residual, "dense")
