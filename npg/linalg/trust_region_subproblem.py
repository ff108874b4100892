"""The minimum of a quadratic in a ball, from the eigenvalues of its matrix."""

import math

import torch
from torch import Tensor

ITERATIONS = 50
# The radius is met to this relative accuracy: it is a rough quantity itself.
TOLERANCE = 1e-3


def minimise_in_ball(
    eigenvalues: Tensor, eigenvectors: Tensor, gradient: Tensor, radius: float
) -> tuple[Tensor, float]:
    """Minimises gᵀp + ½ pᵀBp over ‖p‖ ≤ Δ.

    p = −(B + μI)⁻¹ g with the least μ ≥ 0 for which B + μI is positive semi-definite and p is
    inside. Where no such p reaches the boundary (the hard case), the eigenvector of the least
    eigenvalue takes it there.

    Args:
        eigenvalues: Of B [n], ascending.
        eigenvectors: Of B [n, n], in columns.
        gradient: g [n].
        radius: Δ > 0.

    Returns:
        p [n] and μ.

    Reference:
        Moré and Sorensen, "Computing a trust region step", 1983.
    """
    coefficients = eigenvectors.mT @ gradient
    least = float(eigenvalues[0])
    scale = max(abs(least), abs(float(eigenvalues[-1])), 1e-300)
    if least > 1e-12 * scale:
        step = -coefficients / eigenvalues
        if float(torch.linalg.vector_norm(step)) <= radius:
            return eigenvectors @ step, 0.0
    low = max(0.0, -least)
    high = low + float(torch.linalg.vector_norm(gradient)) / radius
    floor = low + 1e-10 * scale
    multiplier = floor
    for _ in range(ITERATIONS):
        shifted = eigenvalues + multiplier
        step = -coefficients / shifted
        length = float(torch.linalg.vector_norm(step))
        if multiplier == floor and length < radius:  # the hard case, or nearly so
            missing = math.sqrt(radius**2 - length**2)
            step = step.clone()
            step[0] += math.copysign(missing, float(step[0]))
            break
        if abs(length - radius) <= TOLERANCE * radius:
            break
        low, high = (multiplier, high) if length > radius else (low, multiplier)
        # Newton's step on 1/Δ − 1/‖p(μ)‖, which is nearly linear in μ.
        curve = float(((step / length).square() / shifted).sum())
        multiplier += (length / radius - 1) / curve if curve > 0 else math.nan
        if not low < multiplier < high:
            multiplier = max(0.5 * (low + high), floor)
    return eigenvectors @ step, multiplier
