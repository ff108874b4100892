"""policy-gradient-vs-es: one mean, and the variances that their closed forms say."""

import functools

import pytest
import torch
from drawings import gradient_estimators
from drawings.estimator_variances import KINDS, SCORE
from drawings.gradient_estimators import Problem, closed_form

SHAPES = pytest.mark.parametrize(("parameters", "horizon"), [(4, 12), (12, 4), (1, 2)])
ESTIMATORS = pytest.mark.parametrize("kind", [*KINDS, SCORE], ids=lambda kind: kind.name)


@functools.cache
def estimates(kind, parameters, horizon, sigma):
    return gradient_estimators.estimates(kind.estimate, Problem.of(parameters, horizon), sigma)


@SHAPES
def test_the_gradient_is_that_of_the_cost(parameters, horizon):
    problem = Problem.of(parameters, horizon)
    theta = torch.zeros(parameters, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(problem.cost_of(theta), theta)
    torch.testing.assert_close(problem.gradient, gradient)


@SHAPES
def test_both_noises_move_the_end_alike(parameters, horizon):
    """Σ s has the length √T of T independent noises, and the states have the length 1."""
    states = Problem.of(parameters, horizon).states
    assert states.shape == (horizon, parameters)
    assert float(states.sum(0).square().sum()) == pytest.approx(horizon)
    assert float(states.square().sum()) == pytest.approx(horizon)


@pytest.mark.parametrize("sigma", [0.5, 2.0])
@ESTIMATORS
def test_means_are_the_exact_gradient(kind, sigma):
    """χ² of four parameters: above 26 once in 30,000 times."""
    found = estimates(kind, 4, 12, sigma)
    errors = found.std(0) / len(found) ** 0.5
    exact = Problem.of(4, 12).gradient
    assert ((found.mean(0) - exact) / errors).square().sum() < 26
    assert errors.norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("sigma", [0.5, 2.0])
@ESTIMATORS
def test_variances_are_the_closed_forms(kind, sigma):
    problem = Problem.of(4, 12)
    dimension = 12 if kind.in_actions else 4
    found = estimates(kind, 4, 12, sigma)
    exact = problem.gradient
    squares = gradient_estimators.EPISODES * (found - exact).square().sum(1) / exact.square().sum()
    error = float(squares.std() / len(squares) ** 0.5)
    expected = closed_form(dimension, sigma, kind.pairs)
    assert float(squares.mean()) == pytest.approx(expected, abs=4 * error)
    assert error < 0.12 * expected


def test_strategies_are_the_score_of_the_same_draws():
    for seed in range(3):
        problem = Problem.of(6, 5)
        assert gradient_estimators.difference_on_the_same_draws(problem, 0.3, seed) < 1e-13
