"""Columns of the Fisher matrix against exact expectations of scores."""

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal

from npg.curvature.kronecker.roots import fisher_columns
from npg.errors import ConfigurationError
from npg.likelihoods import Likelihood, likelihood, register, score
from tests.npg.families import FAMILIES, nodes, per_sample


@pytest.mark.parametrize("name", FAMILIES)
def test_squares_of_columns_sum_to_the_fisher(name):
    """E[s sᵀ] by enumeration or Gauss–Hermite nodes."""
    p = FAMILIES[name]()
    dims = len(p.batch_shape)
    expected = 0
    for value, weight in nodes(p):
        s = per_sample(score(p, value), dims)
        expected = expected + weight[..., None, None] * s.unsqueeze(-1) * s.unsqueeze(-2)
    columns = [per_sample(column, dims) for column in fisher_columns(p)]
    found = sum(c.unsqueeze(-1) * c.unsqueeze(-2) for c in columns)
    assert len(columns) == expected.shape[-1]
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_of_some_tensors_there_are_no_more_columns_than_needed(wanted):
    p = Independent(Normal(torch.randn(4, 3), torch.rand(4, 3) + 0.5), 1)
    columns = list(fisher_columns(p, wanted))
    assert len(columns) == 3 * sum(wanted)
    assert all(len(column) == sum(wanted) for column in columns)
    if columns:
        found = sum(c.unsqueeze(-1) * c.unsqueeze(-2) for (c,) in columns)
        precision = p.base_dist.scale**-2
        expected = torch.diag_embed(precision if wanted[0] else 2 * precision)
        torch.testing.assert_close(found, expected)


class _OneTemperature(Categorical):
    """A family with a tensor that has no row per sample."""


class _OneTemperatureLikelihood(Likelihood[_OneTemperature]):
    def tensors(self, distribution):
        return (distribution.logits, torch.ones(()))

    def rebuild(self, distribution, tensors):
        return _OneTemperature(logits=tensors[0] * tensors[1], validate_args=False)

    def fisher_product(self, distribution, tangents):
        raise AssertionError("not asked for")

    def sample(self, distribution, generator):
        return torch.zeros(distribution.batch_shape, dtype=torch.long)


def test_tensors_without_a_row_per_sample_are_refused():
    register(_OneTemperature, _OneTemperatureLikelihood())
    p = _OneTemperature(logits=torch.randn(4, 3))
    assert likelihood(p).tensors(p)[1].ndim == 0
    with pytest.raises(ConfigurationError, match='"sampled"'):
        list(fisher_columns(p))
