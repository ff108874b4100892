"""Diagonals from random signs, against the dense Hessian and closed forms."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.curvature import Hessian
from npg.curvature.hutchinson import hutchinson, probe, rademacher
from npg.errors import ConfigurationError


class TestSigns:
    def test_are_signs_of_every_shape_and_dtype(self):
        like = [
            torch.zeros(3, 5),
            torch.zeros((), dtype=torch.float32),
            torch.zeros(2, dtype=torch.bfloat16),
            torch.zeros(0),
            torch.zeros(4, dtype=torch.complex64),
        ]
        drawn = rademacher(like, torch.Generator().manual_seed(0))
        for sign, t in zip(drawn, like, strict=True):
            assert (sign.shape, sign.dtype) == (t.shape, t.dtype)
            real = torch.view_as_real(sign) if sign.is_complex() else sign
            assert bool((real.abs() == 1).all())
        assert rademacher([]) == []

    def test_are_fair_and_uncorrelated(self):
        (signs,) = rademacher([torch.zeros(4000, 64)], torch.Generator().manual_seed(1))
        # Standard deviations: 1/√256000 of the mean, 1/√4000 of a column's and of a product's.
        assert abs(float(signs.mean())) < 5 / math.sqrt(256_000)
        products = signs.T @ signs / 4000 - torch.eye(64)
        assert float(products.abs().max()) < 5 / math.sqrt(4000)

    def test_follow_the_generator(self):
        first, again = (
            rademacher([torch.zeros(99)], torch.Generator().manual_seed(3))[0] for _ in range(2)
        )
        assert torch.equal(first, again)
        other = rademacher([torch.zeros(99)], torch.Generator().manual_seed(4))[0]
        assert not torch.equal(first, other)

    def test_on_meta(self):
        (signs,) = rademacher([torch.zeros(3, 2, device="meta")], torch.Generator())
        assert signs.shape == (3, 2)


@pytest.fixture
def problem():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    x, y = torch.randn(10, 3), torch.randint(3, (10,))
    return model, lambda: F.cross_entropy(model(x), y)


def test_products_are_those_of_the_dense_hessian(problem):
    model, loss = problem
    parameters = list(model.parameters())
    dense = Hessian(model, loss).to_dense()
    vectors = [torch.randn_like(p) for p in parameters]
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
    products = probe(gradients, parameters, vectors)
    flat = torch.cat([v.flatten() for v in vectors])
    found = torch.cat([p.flatten() for p in products])
    torch.testing.assert_close(found, dense @ flat, rtol=1e-11, atol=1e-12)


def test_a_linear_loss_has_no_curvature():
    w = nn.Parameter(torch.randn(3))
    gradients = torch.autograd.grad((2 * w).sum(), [w], create_graph=True)
    assert torch.equal(probe(gradients, [w], [torch.ones(3)])[0], torch.zeros(3))


def test_is_unbiased_with_the_variance_that_theory_says(problem):
    """Var of z_i Σ_j H_ij z_j is Σ_{j≠i} H_ij²."""
    model, loss = problem
    matrix = Hessian(model, loss)
    dense = matrix.to_dense()
    samples = 2000
    estimate = hutchinson(matrix, samples, torch.Generator().manual_seed(0))
    deviation = ((dense.square().sum(1) - dense.diagonal().square()) / samples).sqrt()
    errors = (estimate - dense.diagonal()) / deviation
    assert float(errors.abs().max()) < 5
    assert 0.7 < float(errors.square().mean()) < 1.4


def test_a_diagonal_matrix_is_found_at_once():
    w = nn.Parameter(torch.randn(5))
    curvatures = torch.arange(5.0)
    matrix = Hessian([w], lambda: (curvatures * w**2).sum() / 2)
    torch.testing.assert_close(hutchinson(matrix, 1), curvatures, rtol=1e-12, atol=1e-12)


def test_no_samples():
    w = nn.Parameter(torch.randn(5))
    with pytest.raises(ConfigurationError, match="samples must be at least 1"):
        hutchinson(Hessian([w], lambda: w.square().sum()), 0)
