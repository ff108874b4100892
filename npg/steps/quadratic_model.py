"""Learning rate and momentum together, as the minimum of the quadratic model on two directions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from npg.errors import ConfigurationError

# 1 ± cosine below so many rounding errors of the input counts as collinear.
COLLINEAR = 100


@dataclass(frozen=True)
class QuadraticStep:
    """Where the model is least on the span of the directions, and by how much.

    Attributes:
        coefficients: w [k], float64; the step is Σ w_i v_i. For v = (Δ, previous step) these are
            minus the learning rate and the momentum where Δ is the preconditioned gradient.
        predicted_change: wᵀVᵀg + ½ wᵀVᵀ(C + ηI)V w, a scalar tensor: the change of the loss by
            the model without the damping, to which Levenberg–Marquardt's rule compares.
        damped_change: The same with the damping, −½ wᵀVᵀ(C + (λ + η)I)V w: never positive.
    """

    coefficients: Tensor
    predicted_change: Tensor
    damped_change: Tensor


def minimise_quadratic(
    curvature: Tensor,
    gram: Tensor,
    slope: Tensor,
    *,
    damping: float | Tensor,
    weight_decay: float = 0.0,
) -> QuadraticStep:
    """Returns w* = −(VᵀCV + (λ + η) VᵀV)⁺ Vᵀg for one or two directions.

    A direction that is zero gets the coefficient 0, as do those along which the damped curvature
    is not positive; of collinear directions each takes its part of the one line's minimum.
    Nothing is read from the device.

    Args:
        curvature: VᵀCV [k, k], k = 1 or 2, C the exact Gauss–Newton or Fisher matrix of the
            batch: (J v_i)ᵀ H_L (J v_j) takes one Jacobian product per direction.
        gram: VᵀV [k, k].
        slope: Vᵀg [k], g the gradient of the objective, with its L2 term if it has one.
        damping: λ ≥ 0; high values shorten the step.
        weight_decay: η of an L2 term η/2 ‖θ‖² in the objective. It belongs to the objective's
            curvature, therefore to ``predicted_change`` too.

    Returns:
        Coefficients and changes in float64; all zero where the input is not finite.

    Raises:
        ConfigurationError: If there are not one or two directions, or the shapes differ.

    Reference:
        Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate
        curvature", 2015, section 6.4 for the learning rate and section 7 for the momentum.
    """
    size = len(slope)
    if size not in (1, 2) or not curvature.shape == gram.shape == (size, size):
        raise ConfigurationError(
            "need matrices [k, k] and a slope [k] of k = 1 or 2 directions, got "
            f"{list(curvature.shape)}, {list(gram.shape)} and {list(slope.shape)}"
        )
    rounding = COLLINEAR * max(torch.finfo(t.dtype).eps for t in (curvature, gram, slope))
    undamped = curvature.double() + weight_decay * gram.double()
    damped = undamped + damping * gram.double()
    slope = slope.double()
    finite = torch.isfinite(damped).all() & torch.isfinite(slope).all()
    undamped, damped, slope = (
        torch.where(finite, t, torch.zeros_like(t)) for t in (undamped, damped, slope)
    )

    # In units in which each direction has curvature 1 the matrix is [[1, c], [c, 1]], whose
    # eigenvectors (1, ±1)/√2 and eigenvalues 1 ± c need no iteration.
    diagonal = damped.diagonal()
    unit = torch.where(diagonal > 0, diagonal.clamp(min=torch.finfo(torch.float64).tiny).rsqrt(), 0)
    target = -unit * slope
    if size == 2:
        cosine = (damped[0, 1] + damped[1, 0]) / 2 * unit[0] * unit[1]
        eigenvalues = torch.stack([1 + cosine, 1 - cosine])
        along = torch.stack([target[0] + target[1], target[0] - target[1]])
        along = torch.where(eigenvalues > rounding, along / eigenvalues, 0)
        target = torch.stack([along[0] + along[1], along[0] - along[1]]) / 2
    coefficients = unit * target
    linear = slope @ coefficients
    return QuadraticStep(
        coefficients,
        linear + coefficients @ undamped @ coefficients / 2,
        linear + coefficients @ damped @ coefficients / 2,
    )
