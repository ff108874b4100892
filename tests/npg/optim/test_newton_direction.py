import pytest
import torch

from npg.curvature import CurvatureMatrix
from npg.optim.newton_direction import newton_direction, predicted_change
from npg.preconditioners import ConjugateGradientInverse
from npg.steps import CGBacktracking


class Dense(CurvatureMatrix):
    """A given matrix, which counts its products."""

    def __init__(self, dense):
        super().__init__([torch.zeros(len(dense), requires_grad=True)])
        self.dense, self.products = dense, 0

    def matvec(self, vector):
        self.products += 1
        return self.dense @ vector


def definite(size=12):
    q, _ = torch.linalg.qr(torch.randn(size, size))
    return Dense((q * torch.logspace(0, 2, size)) @ q.T)


EXACT = ConjugateGradientInverse(200, 1e-12)


class TestDefinite:
    @pytest.mark.parametrize("damping", [0.0, 0.5])
    @pytest.mark.parametrize("warm", [False, True])
    def test_is_the_dense_solution(self, damping, warm):
        matrix, g = definite(), torch.randn(12)
        expected = torch.linalg.solve(matrix.dense + damping * torch.eye(12), g)
        start = 0.9 * expected if warm else None
        found = newton_direction(EXACT, matrix, damping, g, start)
        torch.testing.assert_close(found.x, expected, rtol=1e-9, atol=1e-11)
        assert found.iterations == matrix.products
        assert found.quadratic == pytest.approx(float(expected @ matrix.dense @ expected), rel=1e-9)

    def test_a_perfect_preconditioner_takes_one_iteration(self):
        matrix, g = definite(), torch.randn(12)
        inverse = torch.linalg.inv(matrix.dense + 0.3 * torch.eye(12))
        perfect = ConjugateGradientInverse(50, 1e-8, preconditioner=lambda v: inverse @ v)
        found = newton_direction(perfect, matrix, 0.3, g)
        assert (found.iterations, found.reason) == (1, "converged")
        torch.testing.assert_close(found.x, inverse @ g, rtol=1e-8, atol=1e-10)

    def test_a_warm_start_saves_products(self):
        matrix, g = definite(), torch.randn(12)
        rough = ConjugateGradientInverse(200, 0.1)
        near = newton_direction(EXACT, matrix, 0.1, g).x * 0.95
        cold, warm = (newton_direction(rough, matrix, 0.1, g, start) for start in (None, near))
        assert warm.iterations == 1, "one product says that the residual is small enough"
        assert cold.iterations > 3
        assert torch.equal(warm.x, near)

    def test_a_start_that_ends_uphill_is_left(self):
        """One iteration from −10 A⁻¹g does not reach the half space of g."""
        matrix, g = definite(), torch.randn(12)
        start = -10 * torch.linalg.solve(matrix.dense, g)
        short = ConjugateGradientInverse(1, 1e-12)
        path = CGBacktracking()
        found = newton_direction(short, matrix, 0.0, g, start, path)
        assert torch.equal(found.x, short.solve(matrix, 0.0, g).x)
        assert len(path.kept) == 1
        assert torch.equal(path.kept[0][1], found.x)
        assert found.iterations == 3


class TestIndefinite:
    def test_ends_with_what_it_has(self):
        """diag(2, −1), g = (1, 1): curvature 1, step 2; then −8 along the next direction."""
        found = newton_direction(
            EXACT, Dense(torch.diag(torch.tensor([2.0, -1.0]))), 0.0, torch.ones(2)
        )
        assert found.reason == "negative curvature"
        torch.testing.assert_close(found.x, torch.tensor([2.0, 2.0]))

    @pytest.mark.parametrize("damping", [0.0, 0.5])
    def test_is_along_the_gradient_if_the_first_is_negative(self, damping):
        """gᵀg = 2 and gᵀ(H + λI)g = 1 − 3 + 2λ: x = g · 2/|2λ − 2|."""
        matrix, g = Dense(torch.diag(torch.tensor([1.0, -3.0]))), torch.ones(2)
        found = newton_direction(EXACT, matrix, damping, g)
        length = 2 / abs(2 * damping - 2)
        torch.testing.assert_close(found.x, g * length)
        assert found.quadratic == pytest.approx(length**2 * -2)
        assert "along the gradient" in found.reason

    def test_is_along_the_preconditioned_gradient(self):
        matrix, g = Dense(torch.diag(torch.tensor([1.0, -3.0]))), torch.ones(2)
        m = torch.tensor([1.0, 2.0])
        inverse = ConjugateGradientInverse(10, 1e-12, preconditioner=lambda v: m * v)
        found = newton_direction(inverse, matrix, 0.0, g)  # gᵀMg = 3, curvature 1 − 12
        torch.testing.assert_close(found.x, torch.tensor([1.0, 2.0]) * 3 / 11)

    def test_no_curvature_at_all(self):
        found = newton_direction(EXACT, Dense(torch.zeros(2, 2)), 0.0, torch.tensor([3.0, 4.0]))
        torch.testing.assert_close(found.x, torch.tensor([3.0, 4.0]))

    def test_numbers_that_are_not_finite(self):
        found = newton_direction(EXACT, Dense(torch.full((2, 2), torch.nan)), 0.0, torch.ones(2))
        assert found.reason == "not finite"
        assert not found.x.any()


@pytest.mark.parametrize("rates", [0.3, torch.linspace(0.1, 2, 12)])
def test_the_prediction_is_that_of_the_quadratic(rates):
    matrix, g = definite(), torch.randn(12)
    found = newton_direction(ConjugateGradientInverse(3), matrix, 0.2, g, torch.randn(12))
    step = -rates * found.x
    expected = float(g @ step + 0.5 * step @ matrix.dense @ step)
    assert predicted_change(matrix, g, found, rates) == pytest.approx(expected, rel=1e-10)
