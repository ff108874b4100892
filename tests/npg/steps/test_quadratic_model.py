"""The minimum on one or two directions against NumPy, SciPy, and conjugate gradient's."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from npg.errors import ConfigurationError
from npg.linalg import cg
from npg.steps import minimise_quadratic


def problem(size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    factor = torch.randn(size, size)
    return factor @ factor.T / size, torch.randn(size)


def reduced(
    matrix: torch.Tensor, gradient: torch.Tensor, directions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """VᵀCV, VᵀV and Vᵀg for the rows of directions."""
    return directions @ matrix @ directions.T, directions @ directions.T, directions @ gradient


def model(matrix, gradient, step) -> float:
    return float(gradient @ step + 0.5 * step @ matrix @ step)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("damping", "weight_decay"), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.2)])
def test_is_the_minimum_that_scipy_finds(count: int, damping: float, weight_decay: float) -> None:
    matrix, gradient = problem()
    directions = torch.randn(count, 12)
    found = minimise_quadratic(
        *reduced(matrix, gradient, directions), damping=damping, weight_decay=weight_decay
    )
    undamped = matrix + weight_decay * torch.eye(12)
    damped = undamped + damping * torch.eye(12)

    def objective(w: np.ndarray) -> float:
        return model(damped, gradient, directions.T @ torch.from_numpy(w))

    lowest = minimize(objective, np.zeros(count), method="Powell", options={"xtol": 1e-12})
    assert float(found.damped_change) == pytest.approx(lowest.fun, rel=1e-10)
    np.testing.assert_allclose(found.coefficients, lowest.x, rtol=1e-5)
    solved = np.linalg.lstsq(
        (directions @ damped @ directions.T).numpy(), -(directions @ gradient).numpy(), rcond=None
    )[0]
    np.testing.assert_allclose(found.coefficients, solved, rtol=1e-10)
    step = directions.T @ found.coefficients
    assert float(found.damped_change) == pytest.approx(model(damped, gradient, step), rel=1e-12)
    expected = model(undamped, gradient, step)
    assert float(found.predicted_change) == pytest.approx(expected, rel=1e-12)


def test_two_directions_are_conjugate_gradient() -> None:
    """Preconditioned gradient and previous step, repeated: its iterates, for M = diagonal."""
    matrix, gradient = problem()
    preconditioner = 1 / matrix.diagonal()
    x, previous = torch.zeros(12), torch.zeros(12)
    for iteration in range(1, 6):
        residual = gradient + matrix @ x
        directions = torch.stack([preconditioner * residual, previous])
        found = minimise_quadratic(*reduced(matrix, residual, directions), damping=0.0)
        previous = directions.T @ found.coefficients
        x = x + previous
        expected = cg(
            matrix, -gradient, preconditioner=lambda r: preconditioner * r, max_iterations=iteration
        ).x
        torch.testing.assert_close(x, expected, rtol=1e-7, atol=1e-8)


def test_a_previous_step_of_zero_gives_the_learning_rate_alone() -> None:
    matrix, gradient = problem()
    one = minimise_quadratic(*reduced(matrix, gradient, gradient[None]), damping=0.1)
    directions = torch.stack([gradient, torch.zeros(12)])
    found = minimise_quadratic(*reduced(matrix, gradient, directions), damping=0.1)
    torch.testing.assert_close(found.coefficients, torch.cat([one.coefficients, torch.zeros(1)]))
    torch.testing.assert_close(found.predicted_change, one.predicted_change)
    nothing = minimise_quadratic(*reduced(matrix, gradient, torch.zeros(2, 12)), damping=0.1)
    assert nothing.coefficients.tolist() == [0.0, 0.0]
    assert float(nothing.predicted_change) == float(nothing.damped_change) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("multiple", [1.0, -1.0, 3.0, -1e-4, 1e4])
@pytest.mark.parametrize("apart", [0.0, 1e-9])
def test_collinear_directions_give_the_step_of_one(multiple: float, apart: float, dtype) -> None:
    matrix, gradient = problem()
    first = torch.randn(12)
    directions = torch.stack([first, multiple * (first + apart * torch.randn(12))])
    small = [t.to(dtype) for t in reduced(matrix, gradient, directions)]
    found = minimise_quadratic(*small, damping=0.1)
    alone = minimise_quadratic(*reduced(matrix, gradient, first[None]), damping=0.1)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-7
    torch.testing.assert_close(
        directions.T @ found.coefficients,
        first * alone.coefficients,
        rtol=tolerance,
        atol=tolerance * float(first.norm() * alone.coefficients.abs()),
    )
    # Each takes half of the step: no huge coefficients that cancel.
    assert float(found.coefficients[0] / alone.coefficients) == pytest.approx(0.5, rel=1e-3)


def test_nearly_collinear_directions_keep_both() -> None:
    """float64 resolves an angle of 1e-4."""
    matrix, gradient = problem()
    first = torch.randn(12)
    directions = torch.stack([first, first + 1e-4 * torch.randn(12)])
    found = minimise_quadratic(*reduced(matrix, gradient, directions), damping=0.1)
    damped = matrix + 0.1 * torch.eye(12)
    basis = torch.linalg.qr(directions.T).Q
    inner = torch.linalg.solve(basis.T @ damped @ basis, -basis.T @ gradient)
    torch.testing.assert_close(
        directions.T @ found.coefficients, basis @ inner, rtol=1e-4, atol=1e-5
    )


def test_the_directions_length_does_not_matter() -> None:
    matrix, gradient = problem()
    directions = torch.randn(2, 12)
    expected = minimise_quadratic(*reduced(matrix, gradient, directions), damping=0.1)
    for scales in ([1e-12, 1e6], [1e20, 1e-20]):
        scale = torch.tensor(scales)
        found = minimise_quadratic(
            *reduced(matrix, gradient, directions * scale[:, None]), damping=0.1
        )
        torch.testing.assert_close(
            found.coefficients * scale, expected.coefficients, rtol=1e-8, atol=0
        )


def test_directions_without_positive_curvature_are_left_out() -> None:
    """Rounding can leave them: C is semi-definite. Diagonal, so that each stands alone."""
    for curvature in (0.0, -1.0):
        matrix = torch.diag(torch.tensor([2.0, curvature]))
        found = minimise_quadratic(matrix, torch.eye(2), torch.tensor([4.0, 1.0]), damping=0.0)
        assert found.coefficients.tolist() == pytest.approx([-2.0, 0.0])
        assert float(found.damped_change) == pytest.approx(-4.0)
    alone = minimise_quadratic(torch.tensor([[-1.0]]), torch.ones(1, 1), torch.ones(1), damping=0.5)
    assert alone.coefficients.tolist() == [0.0]
    # Eigenvalues 3 and −1 along (1, 1) and (1, −1). Along the first alone, w = t (1, 1):
    # 6 t + ½ 6 t² is least at t = −1, where it is −3.
    indefinite = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    found = minimise_quadratic(indefinite, torch.eye(2), torch.tensor([1.0, 5.0]), damping=0.0)
    assert found.coefficients.tolist() == pytest.approx([-1.0, -1.0])
    assert float(found.damped_change) == pytest.approx(-3.0)


def test_damping_shortens_and_is_no_part_of_the_prediction() -> None:
    """C = 2, g = −6, v = 1: w = 6 / (2 + λ); λ = 1 gives 2, −6·2 + ½·2·4 = −8 and −6."""
    found = minimise_quadratic(
        torch.tensor([[2.0]]), torch.ones(1, 1), torch.tensor([-6.0]), damping=torch.tensor(1.0)
    )
    assert float(found.coefficients) == pytest.approx(2.0, rel=1e-14)
    assert float(found.predicted_change) == pytest.approx(-8.0, rel=1e-14)
    assert float(found.damped_change) == pytest.approx(-6.0, rel=1e-14)


def test_float32_is_solved_in_float64() -> None:
    matrix, gradient = problem()
    directions = torch.randn(2, 12)
    small = [t.float() for t in reduced(matrix, gradient, directions)]
    found = minimise_quadratic(*small, damping=0.1)
    expected = minimise_quadratic(*(t.double() for t in small), damping=0.1)
    assert found.coefficients.dtype == torch.float64
    torch.testing.assert_close(found.coefficients, expected.coefficients, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_takes_no_step(which: int, bad: float) -> None:
    matrix, gradient = problem()
    small = list(reduced(matrix, gradient, torch.randn(2, 12)))
    small[which] = small[which].clone()
    small[which].view(-1)[0] = bad
    found = minimise_quadratic(*small, damping=0.1)
    assert found.coefficients.tolist() == [0.0, 0.0]
    assert float(found.predicted_change) == float(found.damped_change) == 0.0


def test_reads_nothing_from_the_device() -> None:
    for count in (1, 2):
        matrix = torch.ones(count, count, device="meta")
        found = minimise_quadratic(matrix, matrix, matrix[0], damping=0.1)
        assert found.coefficients.shape == (count,)


def test_other_shapes_are_refused() -> None:
    for curvature, gram, slope in (
        (torch.eye(3), torch.eye(3), torch.ones(3)),
        (torch.eye(2), torch.eye(2), torch.ones(1)),
        (torch.eye(2), torch.eye(1), torch.ones(2)),
        (torch.ones(2, 1), torch.eye(2), torch.ones(2)),
    ):
        with pytest.raises(ConfigurationError, match="1 or 2 directions"):
            minimise_quadratic(curvature, gram, slope, damping=0.1)
