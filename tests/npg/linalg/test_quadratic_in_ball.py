import math

import pytest
import torch

from npg.linalg.trust_region_subproblem import quadratic_in_ball


def rotated(values, seed=0):
    """A matrix with these eigenvalues, and its eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    size = len(values)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
    return basis @ torch.diag(torch.tensor(values)) @ basis.T, basis


def check_optimal(matrix, gradient, radius, found):
    """Moré and Sorensen's conditions, which only the global minimum of the ball fulfils."""
    damped = matrix + found.damping * torch.eye(len(gradient))
    rounding = 1e-14 * float(damped.norm() * found.step.norm())
    assert (
        float((damped @ found.step + gradient).norm()) <= 1e-9 * float(gradient.norm()) + rounding
    )
    assert float(torch.linalg.eigvalsh(damped)[0]) >= -1e-12 * float(matrix.norm())
    assert found.length == pytest.approx(float(found.step.norm()), rel=1e-9)
    assert found.length <= 1.1 * radius
    if found.damping > 0:
        assert found.bounded
        assert found.length >= 0.9 * radius
    else:
        assert found.length <= radius


SPECTRA = {
    "definite": [1.0, 2.0, 5.0, 9.0],
    "ill-conditioned": [1e-9, 1e-3, 1.0, 1e3],
    "indefinite": [-3.0, -1.0, 2.0, 4.0],
    "nearly definite": [-1e-7, 1.0, 2.0, 3.0],
    "negative": [-4.0, -3.0, -2.0, -1.0],
    "repeated": [-1.0, -1.0, 2.0, 2.0],
}


@pytest.mark.parametrize("radius", [1e-6, 0.1, 1.0, 30.0, 1e8])
@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)
def test_is_the_global_minimum(values, radius):
    matrix, _ = rotated(values)
    gradient = torch.tensor([1.0, -2.0, 0.5, 3.0])
    found = quadratic_in_ball(matrix, gradient, torch.float64).minimum(radius)
    check_optimal(matrix, gradient, radius, found)


def test_random_points_of_the_ball_are_no_lower():
    matrix, _ = rotated(SPECTRA["indefinite"])
    gradient = torch.randn(4)
    found = quadratic_in_ball(matrix, gradient, torch.float64).minimum(2.0)

    def value(s):
        return s @ gradient + ((s @ matrix) * s).sum(-1) / 2

    points = torch.randn(5000, 4)
    points *= found.length / points.norm(dim=1, keepdim=True)
    assert float(value(found.step)) <= float(value(points).min()) + 1e-12


def test_a_number_by_hand():
    """H = 2, g = −8: Newton's step is 4; in |s| ≤ 1 it is 1, with (2 + λ) = 8."""
    quadratic = quadratic_in_ball(torch.tensor([[2.0]]), torch.tensor([-8.0]), torch.float64)
    assert quadratic.natural_radius() == pytest.approx(4.0)
    free = quadratic.minimum(5.0)
    assert (free.damping, free.bounded) == (0.0, False)
    assert float(free.step[0]) == pytest.approx(4.0)
    bounded = quadratic.minimum(1.0)
    assert bounded.damping == pytest.approx(8 / bounded.length - 2)
    assert bounded.length == pytest.approx(1.0, rel=0.1)


class TestSilentGradient:
    """It has no part along the most negative curvature, or along the null space."""

    @pytest.mark.parametrize("exact", [True, False])
    def test_the_step_goes_along_negative_curvature(self, exact):
        matrix, basis = rotated([-2.0, 1.0, 3.0])
        if exact:
            matrix, basis = torch.diag(torch.tensor([-2.0, 1.0, 3.0])), torch.eye(3)
        gradient = 2 * basis[:, 1]
        found = quadratic_in_ball(matrix, gradient, torch.float64).minimum(5.0)
        assert found.damping == pytest.approx(2.0)
        assert found.length == pytest.approx(5.0, rel=0.1)
        along = basis.T @ found.step
        assert float(along[1]) == pytest.approx(-2 / 3)
        assert abs(float(along[0])) == pytest.approx(math.sqrt(found.length**2 - 4 / 9))
        check_optimal(matrix, gradient, 5.0, found)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_a_null_space_takes_the_shortest_step(self, dtype):
        jacobian = torch.randn(3, 6, dtype=dtype)
        matrix, gradient = jacobian.T @ jacobian, jacobian.T @ torch.randn(3, dtype=dtype)
        found = quadratic_in_ball(matrix, gradient, dtype).minimum(1e6)
        expected = -torch.linalg.pinv(jacobian.double()) @ (
            torch.linalg.pinv(jacobian.double().T) @ gradient.double()
        )
        tolerance = {"rtol": 1e-8, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-2}
        torch.testing.assert_close(found.step, expected, **{"atol": 1e-3, **tolerance})
        assert (found.damping, found.bounded) == (0.0, False)

    def test_a_short_radius_holds_there_too(self):
        jacobian = torch.randn(3, 6)
        matrix, gradient = jacobian.T @ jacobian, jacobian.T @ torch.randn(3)
        found = quadratic_in_ball(matrix, gradient, torch.float64).minimum(1e-2)
        check_optimal(matrix, gradient, 1e-2, found)


def test_a_slope_along_the_null_space_leads_to_the_sphere():
    gradient = torch.tensor([3.0, 4.0])
    found = quadratic_in_ball(torch.diag(torch.tensor([0.0, 1.0])), gradient, torch.float64)
    check_optimal(torch.diag(torch.tensor([0.0, 1.0])), gradient, 7.0, found.minimum(7.0))


def test_no_curvature_at_all():
    gradient = torch.tensor([3.0, 4.0])
    quadratic = quadratic_in_ball(torch.zeros(2, 2), gradient, torch.float64)
    assert quadratic.natural_radius() == 5.0
    found = quadratic.minimum(10.0)
    torch.testing.assert_close(found.step, -gradient * found.length / 5)
    assert found.length == pytest.approx(10.0, rel=0.1)


def test_small_pivots_beside_large_ones_keep_their_digits():
    """Graded as in Powell's badly scaled problem: eigenvectors would lose the small entry."""
    scale = torch.tensor([1e8, 1e-8])
    matrix = scale[:, None] * torch.tensor([[2.0, 1.0], [1.0, 2.0]]) * scale
    wanted = torch.tensor([1e-8, 1e8])
    found = quadratic_in_ball(matrix, -matrix @ wanted, torch.float64).minimum(1e9)
    torch.testing.assert_close(found.step, wanted, rtol=1e-6, atol=0.0)


def test_natural_radius_of_an_indefinite_matrix_takes_absolute_values():
    matrix, basis = rotated([-2.0, 4.0])
    quadratic = quadratic_in_ball(matrix, basis @ torch.tensor([6.0, 16.0]), torch.float64)
    assert quadratic.natural_radius() == pytest.approx(5.0)  # (3, 4)


@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)
def test_variables_that_it_does_not_depend_on_stay(values):
    """Zeros between the others: the same minimum, and a step of −0, which adds to no number."""
    inner, _ = rotated(values)
    places = torch.tensor([0, 2, 3, 6])
    matrix, gradient = torch.zeros(7, 7), torch.zeros(7)
    matrix[places[:, None], places] = inner
    gradient[places] = torch.tensor([1.0, -2.0, 0.5, 3.0])
    whole = quadratic_in_ball(matrix, gradient, torch.float64)
    part = quadratic_in_ball(inner, gradient[places], torch.float64)
    found, expected = whole.minimum(1.5), part.minimum(1.5)
    torch.testing.assert_close(found.step[places], expected.step)
    assert found.damping == expected.damping
    assert whole.natural_radius() == part.natural_radius()
    idle = found.step[torch.tensor([1, 4, 5])]
    assert torch.equal(idle, torch.zeros(3))
    assert bool(idle.signbit().all())


def test_a_gradient_without_curvature_takes_part():
    matrix, gradient = torch.diag(torch.tensor([2.0, 0.0, 0.0])), torch.tensor([0.0, 3.0, 0.0])
    found = quadratic_in_ball(matrix, gradient, torch.float64).minimum(2.0)
    assert float(found.step[1]) == pytest.approx(-2.0, rel=1e-3)
