import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

import npg.preconditioners.implicit
from npg.curvature import CurvatureMatrix, Fisher
from npg.errors import ConfigurationError
from npg.preconditioners import ConjugateGradientInverse, DenseInverse
from tests.npg.oracles import TIGHT, classifier, flat


class Dense(CurvatureMatrix):
    def __init__(self, dense):
        super().__init__([nn.Parameter(torch.zeros(len(dense), dtype=dense.dtype))])
        self.dense = dense
        self.products = 0

    def matvec(self, vector):
        self.products += 1
        return self.dense @ vector


def problem():
    factor = torch.randn(8, 8)
    return Dense(factor @ factor.T / 8), torch.randn(8)


EXACT = [ConjugateGradientInverse(200, 1e-12), DenseInverse()]


@pytest.mark.parametrize("inverse", EXACT)
@pytest.mark.parametrize("damping", [0.3, 0.01])
def test_solves_the_damped_system(inverse, damping):
    matrix, b = problem()
    solution = inverse.solve(matrix, damping, b)
    expected = torch.linalg.solve(matrix.dense + damping * torch.eye(8), b)
    torch.testing.assert_close(solution.x, expected, rtol=1e-8, atol=1e-9)
    # without damping, although the system has it
    quadratic = float(expected @ matrix.dense @ expected)
    assert solution.quadratic == pytest.approx(quadratic, rel=1e-8)
    assert solution.residual < 1e-11


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_the_quadratic_form_is_exact_for_an_inexact_solution(iterations):
    matrix, b = problem()
    solution = ConjugateGradientInverse(iterations, 0).solve(matrix, 0.1, b)
    assert matrix.products == solution.iterations == iterations, "it costs no product"
    x = solution.x
    assert solution.quadratic == pytest.approx(float(x @ matrix.dense @ x), rel=1e-8)
    residual = b - matrix.dense @ x - 0.1 * x
    assert solution.residual == pytest.approx(float(residual.norm() / b.norm()), rel=1e-8)
    assert solution.residual > 1e-4
    assert solution.reason == "iteration limit"


def test_options_reach_conjugate_gradient():
    matrix, b = problem()
    exact = torch.linalg.inv(matrix.dense + 0.1 * torch.eye(8))
    inverse = ConjugateGradientInverse(tolerance=1e-6, preconditioner=lambda v: exact @ v)
    assert inverse.solve(matrix, 0.1, b).iterations == 1
    stop = ConjugateGradientInverse(100, 0.0, progress_tolerance=1e-2)
    assert stop.solve(matrix, 0.1, b).reason == "relative progress"
    loose = ConjugateGradientInverse(100, 0.5).solve(matrix, 0.1, b)
    assert loose.reason == "converged"
    assert 1e-3 < loose.residual <= 0.5


class TestDense:
    @pytest.mark.parametrize("seed", range(40))
    def test_a_singular_matrix_gives_the_least_norm(self, seed):
        """Logits have one degree of freedom too many, which rounding may hide from Cholesky."""
        torch.manual_seed(seed)
        model, x, y = nn.Linear(3, 4), torch.randn(20, 3), torch.randint(4, (20,))
        matrix = Fisher(model, lambda: Categorical(logits=model(x)))
        gradient = flat(torch.autograd.grad(F.cross_entropy(model(x), y), model.parameters()))
        solution = DenseInverse().solve(matrix, 0.0, gradient)
        expected = torch.linalg.lstsq(matrix.to_dense(), gradient, driver="gelsd").solution
        torch.testing.assert_close(solution.x, expected, rtol=1e-6, atol=1e-8)
        assert solution.residual < 1e-8

    def test_float32_is_solved_in_float64(self):
        """A condition of 1e6 leaves float32 no digits."""
        q, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
        dense = ((q * torch.logspace(0, -6, 8, dtype=torch.float64)) @ q.T).float()
        b = torch.randn(8, dtype=torch.float32)
        solution = DenseInverse().solve(Dense(dense), 1e-7, b)
        assert solution.x.dtype == torch.float32
        symmetric = (dense + dense.T).double() / 2
        expected = torch.linalg.solve(symmetric + 1e-7 * torch.eye(8), b.double())
        torch.testing.assert_close(solution.x.double(), expected, rtol=1e-5, atol=1e-5)

    def test_an_indefinite_matrix_is_still_inverted(self):
        solution = DenseInverse().solve(
            Dense(torch.diag(torch.tensor([2.0, -1.0]))), 0.0, torch.ones(2)
        )
        torch.testing.assert_close(solution.x, torch.tensor([0.5, -1.0]))

    def test_a_zero_right_hand_side(self):
        matrix, b = problem()
        solution = DenseInverse().solve(matrix, 0.1, 0 * b)
        assert not solution.x.any()
        assert solution.residual == 0.0

    def test_too_large(self, monkeypatch):
        monkeypatch.setattr(npg.preconditioners.implicit, "DENSE_LIMIT", 7)
        with pytest.raises(ConfigurationError, match="fisher-cg"):
            DenseInverse().solve(*[problem()[0], 0.1, torch.ones(8)])


def test_both_agree_on_a_network():
    model, x, y = classifier()
    matrix = Fisher(model, lambda: Categorical(logits=model(x)))
    gradient = flat(torch.autograd.grad(F.cross_entropy(model(x), y), model.parameters()))
    one, two = (inverse.solve(matrix, 0.1, gradient) for inverse in EXACT)
    torch.testing.assert_close(one.x, two.x, **TIGHT)
    assert one.quadratic == pytest.approx(two.quadratic, rel=1e-8)
