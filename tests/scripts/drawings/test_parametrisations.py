"""natural-vs-euclidean: natural paths agree to the orders that theory has, and gradients do not."""

import functools

import numpy as np
import pytest
from drawings import parametrisations
from drawings.parametrisations import DEVIATION, PRECISION, START, TARGET

KINDS = pytest.mark.parametrize("kind", [DEVIATION, PRECISION], ids=lambda kind: kind.name)
path = functools.cache(parametrisations.path)


@pytest.fixture(autouse=True)
def two_rates(monkeypatch):
    monkeypatch.setattr(parametrisations, "path", path)
    monkeypatch.setattr(parametrisations, "RATES", [1 / 32, 1 / 64])


def spread(mean):
    """E (x − μ)² under the target."""
    return TARGET[1] ** 2 + (TARGET[0] - mean) ** 2


@KINDS
def test_natural_steps_are_those_of_the_formula(kind):
    """F = diag(1/σ², 2/σ²) in (μ, σ), and diag(1/σ², σ⁴/2) in (μ, 1/σ²)."""
    rate = 0.1
    mean, sigma = START
    for place in path(kind, True, rate, 1.0):
        assert place == pytest.approx([mean, sigma], rel=1e-9)
        if kind is DEVIATION:
            following = sigma + rate * (spread(mean) / sigma - sigma) / 2
        else:
            precision = sigma**-2
            precision -= rate * precision * (precision * spread(mean) - 1)
            following = precision**-0.5
        mean, sigma = mean - rate * (mean - TARGET[0]), following


@KINDS
def test_gradient_steps_are_those_of_the_formula(kind):
    rate = 0.1
    before, after = path(kind, False, rate, rate)
    mean, sigma = START
    assert tuple(before) == START
    assert after[0] == pytest.approx(mean - rate * (mean - TARGET[0]) / sigma**2)
    if kind is DEVIATION:
        expected = sigma - rate * (1 / sigma - spread(mean) / sigma**3)
    else:
        expected = (sigma**-2 - rate * (spread(mean) - sigma**2) / 2) ** -0.5
    assert after[1] == pytest.approx(expected)


@KINDS
def test_natural_paths_tend_to_the_flow_linearly(kind):
    apart = []
    for rate in parametrisations.RATES:
        places = path(kind, True, rate)
        exact = parametrisations.flow(np.arange(len(places)) * rate)
        apart.append(np.linalg.norm(places - exact, axis=1).max())
    assert apart[0] / apart[1] == pytest.approx(2, abs=0.15)
    assert apart[1] < 0.02


def test_tangent_vectors_are_one():
    assert parametrisations.tangent_difference() < 1e-12


def test_one_step_differs_by_the_square_of_the_rate_and_a_path_by_the_rate():
    apart = parametrisations.distances(True)
    assert parametrisations.order(apart[:, 0]) == pytest.approx(2, abs=0.1)
    assert parametrisations.order(apart[:, 1]) == pytest.approx(1, abs=0.2)


def test_paths_of_gradients_stay_apart():
    apart = parametrisations.distances(False)
    assert apart[-1, 1] > 0.3
    assert parametrisations.order(apart[:, 1]) == pytest.approx(0, abs=0.1)
