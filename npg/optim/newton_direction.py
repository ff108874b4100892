"""x ≈ (C + λI)⁻¹ g by conjugate gradient, where C may be indefinite and the start may be wrong."""

from dataclasses import replace

from torch import Tensor

from npg.curvature import CurvatureMatrix
from npg.preconditioners import ConjugateGradientInverse, Solution
from npg.steps import CGBacktracking


def newton_direction(
    inverse: ConjugateGradientInverse,
    matrix: CurvatureMatrix,
    damping: float,
    gradient: Tensor,
    start: Tensor | None = None,
    path: CGBacktracking | None = None,
) -> Solution:
    """Solves the system as far as it leads downhill.

    Where the curvature is not positive conjugate gradient ends with what it has. If that is
    nothing yet, x = M⁻¹g · gᵀM⁻¹g / |curvature along M⁻¹g|, a step along the (preconditioned)
    gradient.

    Args:
        inverse: Conjugate gradient, with its preconditioner.
        matrix: C [P, P].
        damping: λ.
        gradient: g [P].
        start: Where to begin [P]. If that ends uphill the system is solved again from zero.
        path: Keeps iterates.

    Returns:
        The solution, with gᵀx > 0; x = 0 where the numbers are not finite.
    """
    solution = inverse.solve(matrix, damping, gradient, start=start, callback=path)
    if start is not None and not float(gradient @ solution.x) > 0:
        if path is not None:
            path.clear()
        again = newton_direction(inverse, matrix, damping, gradient, path=path)
        return replace(again, iterations=solution.iterations + again.iterations)
    if solution.reason != "negative curvature" or bool(solution.x.any()):
        return solution
    x = gradient if inverse.preconditioner is None else inverse.preconditioner(gradient)
    undamped = float(x @ (matrix @ x))
    curvature = abs(undamped + damping * float(x @ x))
    length = float(gradient @ x) / curvature if curvature > 0 else 1.0
    return replace(
        solution,
        x=x * length,
        quadratic=length**2 * undamped,
        iterations=solution.iterations + 1,
        reason="negative curvature: along the gradient",
    )


def predicted_change(
    matrix: CurvatureMatrix, gradient: Tensor, solution: Solution, rates: Tensor | float
) -> float:
    """Change of the loss by the undamped quadratic model.

    Args:
        matrix: C [P, P].
        gradient: g [P].
        solution: x.
        rates: Multipliers η of x, one or [P].

    Returns:
        −gᵀ(ηx) + ½ (ηx)ᵀC(ηx); without a product where there is one rate.
    """
    if isinstance(rates, float):
        return -rates * float(gradient @ solution.x) + 0.5 * rates**2 * solution.quadratic
    step = solution.x * -rates
    return float(gradient @ step) + 0.5 * float(step @ (matrix @ step))
