"""Where a quadratic function is least in a ball: the exact step of a trust region.

min gᵀs + ½ sᵀHs over ‖s‖ ≤ r is solved by s = −(H + λI)⁻¹g with the one λ ≥ 0 that makes H + λI
positive semi-definite and either is zero or puts s on the sphere. λ is Levenberg's and Marquardt's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from npg.linalg.kronecker import symmetrised

# The radius is met to this relative accuracy: it is a rough quantity itself.
LENGTH_TOLERANCE = 1e-3
MAX_ITERATIONS = 100
# How little curvature an unbounded step trusts, relative to the largest.
LEAST_CURVATURE = 1e-8


@dataclass(frozen=True)
class BallMinimum:
    """The minimum of a quadratic function in a ball.

    Attributes:
        step: s [P].
        damping: λ.
        length: ‖s‖.
        bounded: Whether the radius, rather than the function, says where s ends.
    """

    step: Tensor
    damping: float
    length: float
    bounded: bool


class QuadraticInBall(Protocol):
    """gᵀs + ½ sᵀHs, factorised once for balls of any radius."""

    def minimum(self, radius: float) -> BallMinimum:
        """Finds the least value over ‖s‖ ≤ radius, which is to be positive."""

    def natural_radius(self) -> float:
        """The length of −|H|⁻¹g, the step that the function alone would take; ‖g‖ if none."""


def quadratic_in_ball(matrix: Tensor, gradient: Tensor, dtype: torch.dtype) -> QuadraticInBall:
    """Factorises a quadratic function.

    Variables that it does not depend on stay out: rounding would move them, and their zeros would
    make H singular. A matrix that is positive definite beyond doubt takes Cholesky's factorisation:
    it costs a fraction of the eigenvectors, and does not lose small pivots beside large ones, as in
    badly scaled problems. Any other takes its eigenvectors, with which each radius costs O(P²).

    Args:
        matrix: H [P, P], symmetric, finite.
        gradient: g [P], finite and not zero.
        dtype: What they were computed in, by which zero is told from rounding.

    Returns:
        The function, to be minimised in balls.

    Reference:
        Moré and Sorensen, "Computing a trust region step", 1983.
    """
    matrix, gradient = symmetrised(matrix.double()), gradient.double()
    involved = matrix.any(1) | (gradient != 0)
    if not bool(involved.all()):
        places = involved.nonzero().squeeze(1)
        part = quadratic_in_ball(matrix[places][:, places], gradient[places], dtype)
        return _Among(part, places, len(gradient))
    eps = torch.finfo(dtype).eps
    rounding = min(len(gradient) * eps, math.sqrt(eps))
    diagonal = matrix.diagonal()
    if bool((diagonal > 0).all()):
        factor, failed = torch.linalg.cholesky_ex(matrix)
        # A pivot is what is left of its diagonal entry.
        if not int(failed) and bool((factor.diagonal().square() > rounding * diagonal).all()):
            return _Definite(matrix, gradient, factor)
    values, vectors = torch.linalg.eigh(matrix)
    return _Diagonalised(values, vectors, gradient, rounding)


def minimise_in_ball(
    eigenvalues: Tensor, eigenvectors: Tensor, gradient: Tensor, radius: float
) -> tuple[Tensor, float]:
    """Minimises gᵀs + ½ sᵀHs over ‖s‖ ≤ r, where the eigenvectors of H are known.

    Args:
        eigenvalues: Of H [P], ascending.
        eigenvectors: Of H [P, P], in columns.
        gradient: g [P].
        radius: r > 0.

    Returns:
        s [P] and λ.
    """
    rounding = len(gradient) * torch.finfo(gradient.dtype).eps
    found = _Diagonalised(eigenvalues, eigenvectors, gradient, rounding).minimum(radius)
    return found.step, found.damping


class _Among:
    """A quadratic function of some of the variables; the others stay bit for bit.

    Their part of a step is −0: θ + (−0) is θ, which θ + 0 is not where θ = −0.
    """

    def __init__(self, part: QuadraticInBall, places: Tensor, size: int) -> None:
        self.part, self.places, self.size = part, places, size

    def natural_radius(self) -> float:
        return self.part.natural_radius()

    def minimum(self, radius: float) -> BallMinimum:
        found = self.part.minimum(radius)
        step = found.step.new_full((self.size,), -0.0).index_copy(0, self.places, found.step)
        return replace(found, step=step)


class _Definite:
    """By Cholesky factors of H + λI, which is positive definite at λ = 0."""

    def __init__(self, matrix: Tensor, gradient: Tensor, factor: Tensor) -> None:
        self.matrix, self.gradient = matrix, gradient
        self.steepest = float(torch.linalg.vector_norm(gradient))
        self.newton = self._solve(factor)
        self.newton_length, self.newton_slope = self._measured(self.newton, factor)

    def _solve(self, factor: Tensor) -> Tensor:
        return -torch.cholesky_solve(self.gradient.unsqueeze(1), factor).squeeze(1)

    @staticmethod
    def _measured(step: Tensor, factor: Tensor) -> tuple[float, float]:
        half = torch.linalg.solve_triangular(factor, step.unsqueeze(1), upper=False)
        return float(torch.linalg.vector_norm(step)), float(half.square().sum())

    def natural_radius(self) -> float:
        return _finite(self.newton_length, self.steepest)

    def minimum(self, radius: float) -> BallMinimum:
        if self.newton_length <= radius:
            return BallMinimum(self.newton, 0.0, self.newton_length, bounded=False)

        def damped(shift: float) -> tuple[Tensor, float, float]:
            if shift == 0:
                return self.newton, self.newton_length, self.newton_slope
            matrix = self.matrix.clone()
            matrix.diagonal().add_(shift)
            factor = torch.linalg.cholesky_ex(matrix).L
            step = self._solve(factor)
            return (step, *self._measured(step, factor))

        step, length, damping = _on_sphere(damped, radius, 0.0, self.steepest / radius)
        return BallMinimum(step, damping, length, bounded=True)


class _Diagonalised:
    """By the eigenvectors of H: indefinite, or with a null space.

    What rounding may have made of zero counts as zero, so that −H⁺g is the shortest step.
    """

    def __init__(self, values: Tensor, vectors: Tensor, gradient: Tensor, rounding: float) -> None:
        self.vectors = vectors
        self.target = -(vectors.mT @ gradient)
        self.steepest = float(torch.linalg.vector_norm(gradient))
        scale = float(values.abs().max())
        null = values.abs() <= rounding * scale
        self.values = torch.where(null, 0, values)
        silent = self.target.abs() <= rounding * self.steepest
        self.target = torch.where(null & silent, 0, self.target)
        self.least = max(0.0, -float(self.values[0]))  # λ is not below this

    def natural_radius(self) -> float:
        scale = float(self.values.abs().max())
        if scale == 0:
            return self.steepest
        trusted = self.values.abs().clamp(min=LEAST_CURVATURE * scale)
        return _finite(float(torch.linalg.vector_norm(self.target / trusted)), self.steepest)

    def minimum(self, radius: float) -> BallMinimum:
        above = self.values + self.least  # not negative, and zero where H + λI is singular

        def damped(shift: float) -> tuple[Tensor, float, float]:
            inverse = torch.where(above + shift > 0, 1 / (above + shift), 0)
            step = self.target * inverse
            return step, float(torch.linalg.vector_norm(step)), float(step.square() @ inverse)

        bottom = above == 0
        open_end = float(torch.linalg.vector_norm(self.target[bottom]))
        shift = 0.0
        step, length, _ = damped(0.0)
        if open_end == 0 and length <= radius:
            if self.least > 0:  # the gradient says nothing of the way that leads down
                step[0] = math.sqrt(max(radius**2 - length**2, 0.0))
                length = radius
        else:
            step, length, shift = _on_sphere(
                damped, radius, open_end / radius, self.steepest / radius
            )
        bounded = shift > 0 or self.least > 0
        return BallMinimum(self.vectors @ step, self.least + shift, length, bounded)


def _finite(length: float, otherwise: float) -> float:
    return length if math.isfinite(length) else otherwise


def _on_sphere(
    damped: Callable[[float], tuple[Tensor, float, float]],
    radius: float,
    low: float,
    high: float,
) -> tuple[Tensor, float, float]:
    """Finds the shift μ at which a step has the length r, by Newton's method on 1/r − 1/‖s(μ)‖.

    That function is nearly straight, and its tangents from the left do not pass the root.

    Args:
        damped: From μ to s, ‖s‖ and sᵀ(H + λI)⁻¹s.
        radius: r.
        low: μ at which s is no shorter than r.
        high: μ at which it is no longer.

    Returns:
        s, ‖s‖ and μ.
    """
    shift = low
    for _ in range(MAX_ITERATIONS):
        step, length, slope = damped(shift)
        if abs(length - radius) <= LENGTH_TOLERANCE * radius:
            break
        low, high = (shift, high) if length > radius else (low, shift)
        shift += length**2 / slope * (length - radius) / radius if slope > 0 else math.nan
        if not low < shift < high:  # by rounding alone
            shift = math.sqrt(low * high) if low > 0 else 1e-3 * high
    return step, length, shift
