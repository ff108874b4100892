import math

import numpy as np
import pytest
import scipy.optimize
import torch
from scipy.optimize._trustregion_exact import IterativeSubproblem

from npg.linalg.trust_region_subproblem import minimise_in_ball

N = 5


def matrix_of(values):
    """A symmetric matrix with these eigenvalues, in a random basis."""
    values = torch.as_tensor(values, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(len(values), len(values)))[0]
    matrix = basis @ torch.diag(values) @ basis.mT
    return 0.5 * (matrix + matrix.mT)


def solve(matrix, gradient, radius):
    step, multiplier = minimise_in_ball(*torch.linalg.eigh(matrix), gradient, radius)
    assert torch.isfinite(step).all()
    assert float(step.norm()) <= 1.001 * radius * (1 + 1e-12)
    assert multiplier >= 0
    return step, multiplier


def model(matrix, gradient, step):
    return float(gradient @ step + 0.5 * step @ matrix @ step)


def scipys(matrix, gradient, radius):
    """Moré and Sorensen's method of SciPy, at the tightest tolerances that it has."""
    g, b = gradient.numpy(), matrix.numpy()
    subproblem = IterativeSubproblem(
        np.zeros(len(g)), lambda x: 0.0, lambda x: g, lambda x: b, k_easy=1e-10, k_hard=1e-10
    )
    step, at_boundary = subproblem.solve(radius)
    return torch.from_numpy(step), at_boundary


SPECTRA = {
    "positive": [0.5, 1, 2, 3, 10],
    "ill-conditioned": [1e-4, 1e-2, 1, 1e2, 1e4],
    "indefinite": [-3, -1, 0.5, 2, 4],
    "negative": [-5, -4, -3, -2, -1],
    "barely negative": [-1e-9, 1, 2, 3, 4],
    "twice": [-2, -2, 1, 1, 1],
}


@pytest.mark.parametrize("radius", [1e-3, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("name", SPECTRA)
class TestAgainstSciPy:
    def test_the_model_falls_as_far(self, name, radius):
        """To 0.3 %: the boundary is met to 0.1 %, and −m(Δ)/Δ² falls with Δ."""
        for _ in range(5):
            matrix, gradient = matrix_of(SPECTRA[name]), torch.randn(N)
            step, multiplier = solve(matrix, gradient, radius)
            expected, at_boundary = scipys(matrix, gradient, radius)
            best = model(matrix, gradient, expected)
            assert model(matrix, gradient, step) <= best + 3e-3 * abs(best)
            if at_boundary:
                assert float(step.norm()) == pytest.approx(radius, rel=1.001e-3)
            else:
                assert multiplier == 0
                torch.testing.assert_close(step, expected, rtol=1e-6, atol=1e-9)

    def test_meets_the_conditions_of_a_minimum(self, name, radius):
        """(B + μI) p = −g, B + μI positive semi-definite, μ (Δ − ‖p‖) = 0."""
        matrix, gradient = matrix_of(SPECTRA[name]), torch.randn(N)
        step, multiplier = solve(matrix, gradient, radius)
        size = float(torch.linalg.eigvalsh(matrix).abs().max()) + multiplier
        residual = matrix @ step + multiplier * step + gradient
        assert float(residual.norm()) <= 1e-8 * (size * radius + float(gradient.norm()))
        assert float(torch.linalg.eigvalsh(matrix)[0]) + multiplier >= -1e-9 * size
        assert multiplier * abs(float(step.norm()) - radius) <= 1.001e-3 * multiplier * radius


class TestSpecialCases:
    def test_inside_it_is_newtons_step(self):
        matrix, gradient = matrix_of(SPECTRA["positive"]), torch.randn(N)
        step, multiplier = solve(matrix, gradient, 1e3)
        assert multiplier == 0
        torch.testing.assert_close(step, -torch.linalg.solve(matrix, gradient))

    @pytest.mark.parametrize("radius", [0.1, 10.0])
    def test_the_hard_case(self, radius):
        """g at right angles to the eigenvectors of −2: brute force over the plane's circle."""
        values = torch.tensor([-2.0, 1.0])
        gradient = torch.tensor([0.0, 1.0])
        step, multiplier = solve(torch.diag(values), gradient, radius)
        angles = torch.linspace(0, 2 * math.pi, 100_001)
        circle = radius * torch.stack([angles.cos(), angles.sin()])
        least = float((gradient @ circle + 0.5 * values @ circle.square()).min())
        assert model(torch.diag(values), gradient, step) == pytest.approx(least, rel=3e-3)
        assert float(step.norm()) == pytest.approx(radius, rel=1e-3)
        if radius == 10.0:  # p₂ = −1/(1 + 2), the rest along the eigenvector
            assert multiplier == pytest.approx(2.0)
            assert float(step[1]) == pytest.approx(-1 / 3)

    @pytest.mark.parametrize("tilt", [1e-3, 1e-8, 1e-12, 1e-16])
    def test_nearly_the_hard_case(self, tilt):
        """The side that descends, where there is one."""
        gradient = torch.tensor([tilt, 1.0])
        step, _ = solve(torch.diag(torch.tensor([-2.0, 1.0])), gradient, 10.0)
        assert float(step[0]) == pytest.approx(-math.sqrt(100 - 1 / 9), rel=1.1e-3)

    @pytest.mark.parametrize("name", SPECTRA)
    def test_a_gradient_of_zero(self, name):
        """A minimum stays; a saddle is left along the most negative curvature."""
        matrix = matrix_of(SPECTRA[name])
        step, multiplier = solve(matrix, torch.zeros(N), 2.0)
        least = SPECTRA[name][0]
        if least > 0:
            assert multiplier == 0
            assert not step.any()
        else:
            assert float(step.norm()) == pytest.approx(2.0)
            assert model(matrix, torch.zeros(N), step) == pytest.approx(2 * least, rel=1e-6)

    @pytest.mark.parametrize("radius", [0.5, 20.0])
    def test_a_singular_matrix(self, radius):
        """Along its null space the model is linear: down to the boundary."""
        matrix, gradient = torch.diag(torch.tensor([0.0, 0.0, 2.0])), torch.tensor([1.0, -2.0, 3.0])
        step, _ = solve(matrix, gradient, radius)
        found = scipy.optimize.minimize(
            lambda p: model(matrix, gradient, torch.from_numpy(p)),
            np.zeros(3),
            method="SLSQP",
            constraints={"type": "ineq", "fun": lambda p: radius**2 - p @ p},
            options={"ftol": 1e-12},
        )
        assert model(matrix, gradient, step) == pytest.approx(found.fun, rel=3e-3)

    def test_no_curvature_at_all(self):
        gradient = torch.tensor([3.0, -4.0])
        step, _ = solve(torch.zeros(2, 2), gradient, 2.0)
        torch.testing.assert_close(step, -0.4 * gradient, rtol=2e-3, atol=0.0)

    @pytest.mark.parametrize("size", [1e-130, 1e-60, 1e-30, 1e30, 1e100])
    @pytest.mark.parametrize("radius", [1e-6, 1.0, 1e6])
    def test_matrices_of_any_size(self, size, radius):
        """Neither the curvature's unit nor the radius may overflow on the way."""
        matrix, gradient = size * matrix_of(SPECTRA["indefinite"]), torch.randn(N)
        step, _ = solve(matrix, gradient, radius)
        units = size * radius * radius
        alone, _ = solve(matrix * radius * radius / units, gradient * radius / units, 1.0)
        got, expected = (
            model(matrix, gradient, step) / units,
            model(matrix / size, gradient / (size * radius), alone),
        )
        assert got == pytest.approx(expected, rel=3e-3)

    @pytest.mark.parametrize("size", [1e-300, 1e300, 1.7e308])
    def test_at_the_limits_of_the_numbers(self, size):
        """A step inside, if need be a short one, but no exception."""
        solve(size * torch.diag(torch.tensor([-1.0, 0.5])), torch.tensor([1e308, 1.0]), 0.2)

    @pytest.mark.parametrize("n", [1, 2, 40])
    def test_any_dimension(self, n):
        matrix, gradient = matrix_of(torch.randn(n)), torch.randn(n)
        step, _ = solve(matrix, gradient, 0.7)
        if n == 1:
            grid = torch.linspace(-0.7, 0.7, 10_001)
            best = float((gradient * grid + 0.5 * matrix[0] * grid**2).min())
        else:
            best = model(matrix, gradient, scipys(matrix, gradient, 0.7)[0])
        assert model(matrix, gradient, step) <= best + 3e-3 * abs(best)
