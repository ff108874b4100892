"""sampling-view: the closed forms are the integrals, and the search's steps are about them."""

import math

import pytest
import torch
from drawings import sampling_view
from drawings.sampling_view import HESSIAN, SIGMA, START, angle, expected, gradient


def integrals(temperature):
    """E wΔ / E w and (E w)² / E w² over Δ ~ N(0, σ²I), as sums over a fine grid."""
    line = torch.linspace(-9, 9, 601, dtype=torch.float64)
    steps = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).reshape(-1, 2)
    places = START + steps
    objective = torch.einsum("ni,ij,nj->n", places, HESSIAN, places) / 2
    density = torch.softmax(-steps.square().sum(1) / (2 * SIGMA**2), 0)
    weights = torch.exp(-(objective - sampling_view.objective(START)) / temperature)
    mean = (density * weights) @ steps / (density @ weights)
    return mean, float((density @ weights) ** 2 / (density @ weights**2))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 10.0])
def test_closed_forms_are_the_integrals(temperature):
    mean, share = integrals(temperature)
    torch.testing.assert_close(expected(temperature), mean, rtol=1e-9, atol=1e-9)
    assert sampling_view.expected_share(temperature) == pytest.approx(share, rel=1e-9)


def test_the_ends_are_steepest_descent_and_newton():
    hot, cold = 1e6, 1e-6
    assert angle(expected(hot), -gradient()) < 1e-3
    torch.testing.assert_close(expected(hot), -(SIGMA**2) / hot * gradient(), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(START + expected(cold), torch.zeros(2).double(), atol=1e-5, rtol=0)
    assert angle(expected(cold), -gradient()) > 45


@pytest.mark.parametrize("temperature", [0.3, 3.0, 30.0])
def test_steps_of_the_search_are_about_the_closed_form(temperature):
    """Within five standard errors, and so short that a wrong α or σ would be outside."""
    found = sampling_view.sampled(temperature, candidates=400, repetitions=10)
    deviation = (found.mean - expected(temperature)) / found.errors
    assert deviation.abs().max() < 5
    for wrong in (temperature / 2, temperature * 2):
        assert ((found.mean - expected(wrong)) / found.errors).abs().max() > 5
    share = sampling_view.expected_share(temperature)
    assert found.share == pytest.approx(share, rel=0.1)


def test_angles():
    right, up = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert angle(right, up) == pytest.approx(90)
    assert angle(right, right + up / 2) == pytest.approx(45)
    assert angle(right, -right) == pytest.approx(math.degrees(math.pi))
