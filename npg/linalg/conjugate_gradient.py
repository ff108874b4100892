"""Preconditioned conjugate gradient with a report."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from npg.errors import ConfigurationError

StopReason = Literal[
    "converged", "relative progress", "iteration limit", "zero right-hand side",
    "negative curvature", "not finite",
]  # fmt: skip


class SupportsMatmul(Protocol):
    """Anything that can be applied to a vector by ``@``."""

    def __matmul__(self, vector: Tensor, /) -> Tensor:
        """Returns the product with a vector [P]."""


@dataclass(frozen=True)
class CGResult:
    """What conjugate gradient found.

    Attributes:
        x: Approximate solution [P].
        iterations: Products with the matrix that entered ``x``.
        residual: Vector b − A x [P], by the recursion.
        residual_norm: ‖b − A x‖ / ‖b‖; 0 for b = 0.
        reason: Why it stopped.
    """

    x: Tensor
    iterations: int
    residual: Tensor
    residual_norm: float
    reason: StopReason


def cg(
    matrix: SupportsMatmul,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
    max_iterations: int = 10,
    tolerance: float = 1e-10,
    progress_tolerance: float | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> CGResult:
    """Solves A x = b for a symmetric positive definite A known by its products.

    Args:
        matrix: A, applied by ``@``; for damping pass ``F + 0.1``.
        b: Right-hand side [P]. A zero b gives x = 0 without a product.
        x0: Warm start [P]; costs one product. Default: zero.
        preconditioner: v ↦ M⁻¹v with M symmetric positive definite and near A.
        max_iterations: Bound on the iterations, each one product. More iterations follow small
            eigenvalues better; 10 to 25 is usual for natural gradients.
        tolerance: Stops when ‖b − A x‖ ≤ tolerance · ‖b‖.
        progress_tolerance: Martens' stop: with φ(x) = ½xᵀAx − bᵀx, stops at iteration i when φ
            improved by less than k · progress_tolerance · |φ| over the last k = max(10, i/10)
            iterations. 5e-4 is his value; ``None`` switches it off.
        callback: Called with the number of every iteration and the x that it reached, which the
            next one overwrites.

    Returns:
        The solution with its report. On negative curvature or a non-finite product it is what was
        reached before, and ``reason`` says so.

    Raises:
        ConfigurationError: If ``max_iterations`` is not positive or ``tolerance`` is negative.

    Reference:
        Hestenes and Stiefel 1952; Martens, "Deep learning via Hessian-free optimization", 2010,
        section 4.4 for the stop.
    """
    if max_iterations < 1:
        raise ConfigurationError(f"max_iterations must be at least 1, got {max_iterations}")
    if not tolerance >= 0:
        raise ConfigurationError(f"tolerance must not be negative, got {tolerance}")

    norm_b = float(torch.linalg.vector_norm(b))
    if norm_b == 0.0:
        return CGResult(torch.zeros_like(b), 0, torch.zeros_like(b), 0.0, "zero right-hand side")
    x = torch.zeros_like(b) if x0 is None else x0.clone()
    r = b.clone() if x0 is None else b - matrix @ x
    p = torch.zeros_like(r)
    rz = 1.0  # of no consequence: the first p is z
    norm_r = float(torch.linalg.vector_norm(r))

    values: list[float] = []
    iterations = 0
    reason: StopReason = "iteration limit"
    while True:
        if norm_r <= tolerance * norm_b:
            reason = "converged"
            break
        if iterations == max_iterations:
            break
        z = r if preconditioner is None else preconditioner(r)
        rz, previous = float(r @ z), rz
        p.mul_(rz / previous).add_(z)
        product = matrix @ p
        curvature = float(p @ product)
        if not (abs(curvature) < float("inf") and abs(rz) < float("inf")):
            reason = "not finite"
            break
        if curvature <= 0.0 or rz <= 0.0:
            reason = "negative curvature"
            break
        step = rz / curvature
        x.add_(p, alpha=step)
        r.sub_(product, alpha=step)
        iterations += 1
        norm_r = float(torch.linalg.vector_norm(r))
        if callback is not None:
            callback(iterations, x)
        if progress_tolerance is not None:
            values.append(-0.5 * float(x @ (b + r)))  # ½xᵀAx − bᵀx with Ax = b − r
            window = max(10, iterations // 10)
            if (
                len(values) > window
                and values[-1] < 0
                and values[-1 - window] - values[-1] < window * progress_tolerance * abs(values[-1])
            ):
                reason = "relative progress"
                break
    return CGResult(x, iterations, r, norm_r / norm_b, reason)
