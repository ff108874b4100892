"""Every family's Fisher matrix, score, KL and samples, by torch's KL, quadrature and moments."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from npg.likelihoods import Product, detached, joint_kl, likelihood, score
from tests.npg.families import FAMILIES, nodes, per_sample
from tests.npg.oracles import TIGHT, flat


@pytest.fixture(params=sorted(FAMILIES))
def p(request):
    return FAMILIES[request.param]()


class TestEveryFamily:
    def test_fisher_is_the_curvature_of_the_kl(self, p):
        family = likelihood(p)
        tensors = family.tensors(p)
        start = flat(tensors)

        def kl(vector: Tensor) -> Tensor:
            pieces = vector.split([t.numel() for t in tensors])
            pieces = [v.view(t.shape) for v, t in zip(pieces, tensors, strict=True)]
            return kl_divergence(p, family.rebuild(p, tuple(pieces))).sum()

        expected = torch.autograd.functional.hessian(kl, start)
        gradient = torch.autograd.functional.jacobian(kl, start)
        torch.testing.assert_close(gradient, torch.zeros_like(start), atol=1e-10, rtol=0)
        columns = []
        for unit in torch.eye(len(start)):
            pieces = unit.split([t.numel() for t in tensors])
            tangents = tuple(v.view(t.shape) for v, t in zip(pieces, tensors, strict=True))
            columns.append(flat(family.fisher_product(p, tangents)))
        torch.testing.assert_close(torch.stack(columns, 1), expected, **TIGHT)

    def test_fisher_is_the_covariance_of_scores_with_mean_zero(self, p):
        """By enumeration or Gauss–Hermite quadrature, which is exact for these polynomials."""
        if isinstance(p, Product) and len(p.components) > 2:
            p = Product(p.components[:2])  # five would make thousands of nodes
        family, dims = likelihood(p), len(p.batch_shape)
        tensors = family.tensors(p)
        mean, second, total = 0, 0, 0
        for value, weight in nodes(p):
            s = per_sample(score(p, value), dims)
            mean = mean + weight.unsqueeze(-1) * s
            second = second + weight[..., None, None] * s.unsqueeze(-1) * s.unsqueeze(-2)
            total = total + weight
        torch.testing.assert_close(total, torch.ones(p.batch_shape), **TIGHT)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-10, rtol=0)
        tangents = tuple(torch.randn_like(t) for t in tensors)
        product = per_sample(family.fisher_product(p, tangents), dims)
        by_scores = (second @ per_sample(tangents, dims).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(product, by_scores, **TIGHT)

    def test_rebuilding_gives_the_same_distribution(self, p):
        family = likelihood(p)
        again = family.rebuild(p, family.tensors(p))
        assert type(again) is type(p)
        assert (again.batch_shape, again.event_shape) == (p.batch_shape, p.event_shape)
        value = p.sample()
        torch.testing.assert_close(again.log_prob(value), p.log_prob(value), **TIGHT)

    def test_joint_kl_is_torchs(self, p):
        family = likelihood(p)
        q = family.rebuild(p, tuple(t * 1.1 for t in family.tensors(p)))
        expected = kl_divergence(p, q)
        assert expected.shape == p.batch_shape
        assert bool((expected > 1e-5).all())
        torch.testing.assert_close(joint_kl(p, q), expected, **TIGHT)
        reverse = kl_divergence(q, p)
        assert not torch.allclose(reverse, expected)
        torch.testing.assert_close(joint_kl(q, p), reverse, **TIGHT)

    def test_detached_is_a_copy(self, p):
        family = likelihood(p)
        leaves = tuple(t.detach().clone().requires_grad_() for t in family.tensors(p))
        copy = detached(family.rebuild(p, leaves))
        value = p.sample()
        assert not copy.log_prob(value).requires_grad
        before = copy.log_prob(value).clone()
        with torch.no_grad():
            for leaf in leaves:
                leaf.mul_(2)
        torch.testing.assert_close(copy.log_prob(value), before, rtol=0, atol=0)

    def test_detached_dtype(self, p):
        copy = detached(p, torch.float32)
        assert {t.dtype for t in likelihood(copy).tensors(copy)} == {torch.float32}
        copy = detached(p)
        assert {t.dtype for t in likelihood(copy).tensors(copy)} == {torch.float64}

    def test_samples_are_reproducible(self, p):
        family = likelihood(p)

        def draw(seed):
            return family.sample(p, torch.Generator().manual_seed(seed))

        torch.testing.assert_close(draw(1), draw(1), rtol=0, atol=0)
        assert any(not torch.equal(draw(1), draw(seed)) for seed in range(2, 8))
        state = torch.get_rng_state()
        draw(3)
        assert torch.equal(torch.get_rng_state(), state), "a generator leaves the global one alone"
        torch.manual_seed(5)
        one = family.sample(p, None)
        torch.manual_seed(5)
        assert torch.equal(family.sample(p, None), one)
        assert one.shape == p.batch_shape + p.event_shape

    def test_draws_are_of_each_sample(self, p):
        """E[∇ log p] = 0, within five standard errors of 4,000 draws; it is not, of another's."""
        family = likelihood(p)
        drawn = family.draws(p, 4000, torch.Generator().manual_seed(0))
        assert drawn.shape == (4000, *p.batch_shape, *p.event_shape)
        again = family.draws(p, 4000, torch.Generator().manual_seed(0))
        assert torch.equal(drawn, again)
        repeated = tuple(t.expand(4000, *t.shape) for t in family.tensors(p))
        for scores in family.score(family.rebuild(p, repeated), drawn):
            standard_error = scores.std(0) / math.sqrt(4000)
            assert bool((scores.mean(0).abs() <= 5 * standard_error).all())

    def test_score_is_the_gradient_of_the_log_probability(self, p):
        family = likelihood(p)
        leaves = tuple(t.detach().clone().requires_grad_() for t in family.tensors(p))
        value = p.sample()
        q = family.rebuild(p, leaves)
        expected = torch.autograd.grad(q.log_prob(value).sum(), leaves)
        with torch.no_grad():
            found = score(p, value)
        torch.testing.assert_close(found, expected, **TIGHT)


MANY = 40_000


@pytest.mark.parametrize(
    ("p", "mean", "variance"),
    [
        (Bernoulli(probs=torch.tensor([0.2])), [0.2], [0.16]),
        (Normal(torch.tensor([2.0]), torch.tensor([3.0])), [2.0], [9.0]),
        (
            Independent(Normal(torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 2.0]])), 1),
            [1.0, -1.0],
            [0.25, 4.0],
        ),
        # Σ = [[4, 2], [2, 2]] has the factor [[2, 0], [1, 1]].
        (
            MultivariateNormal(
                torch.tensor([[0.0, 1.0]]), scale_tril=torch.tensor([[[2.0, 0.0], [1.0, 1.0]]])
            ),
            [0.0, 1.0],
            [4.0, 2.0],
        ),
        # mean 0.3 + 2 · 0.5 = 1.3, second moment 0.3 + 4 · 0.5 = 2.3
        (Categorical(probs=torch.tensor([[0.2, 0.3, 0.5]])), [1.3], [2.3 - 1.69]),
        (
            Product(
                [
                    Categorical(probs=torch.tensor([[0.2, 0.3, 0.5]])),
                    Normal(torch.tensor([2.0]), torch.tensor([3.0])),
                ]
            ),
            [1.3, 2.0],
            [0.61, 9.0],
        ),
    ],
    ids=lambda value: "" if isinstance(value, list) else type(value).__name__,
)
def test_samples_have_the_moments_of_the_distribution(p, mean, variance):
    family = likelihood(p)
    tensors = tuple(t.to(torch.float64).expand(MANY, *t.shape[1:]) for t in family.tensors(p))
    draws = family.sample(family.rebuild(p, tensors), torch.Generator().manual_seed(0))
    draws = draws.reshape(MANY, -1).double()
    mean, variance = torch.tensor(mean), torch.tensor(variance)
    errors = 5 * (variance / MANY).sqrt()
    assert bool(((draws.mean(0) - mean).abs() < errors).all())
    # The variance's own standard error is below √(3/N) of it for all of these.
    assert bool(((draws.var(0) / variance - 1).abs() < 5 * math.sqrt(3 / MANY)).all())


def test_multivariate_samples_are_correlated():
    """Σ = [[4, 2], [2, 2]]: the factor and its transpose differ in it."""
    factor = torch.tensor([[2.0, 0.0], [1.0, 1.0]]).expand(MANY, 2, 2)
    p = MultivariateNormal(torch.zeros(MANY, 2), scale_tril=factor)
    draws = likelihood(p).sample(p, torch.Generator().manual_seed(0))
    expected = torch.tensor([[4.0, 2.0], [2.0, 2.0]])
    torch.testing.assert_close(draws.T.cov(), expected, atol=5 * 4 * math.sqrt(2 / MANY), rtol=0)


def test_sequences_of_categories_are_drawn_in_place():
    logits = torch.full((2, 3, 4), -50.0)
    index = torch.randint(4, (2, 3, 1))
    p = Categorical(logits=logits.scatter(-1, index, 50.0))
    assert torch.equal(likelihood(p).sample(p, None), index.squeeze(-1))


class TestJointKL:
    def test_keeps_its_digits_in_float32(self):
        """Logits 1e-4 apart make a KL near 1e-9, lost in float32's log-probabilities."""
        logits = torch.randn(64, 5, dtype=torch.float32)
        new = logits + 1e-4 * torch.randn_like(logits)
        p, q = Categorical(logits=logits), Categorical(logits=new)
        a, b = p.logits.double().log_softmax(-1), q.logits.double().log_softmax(-1)
        expected = (a.exp() * (a - b)).sum(-1)
        found = joint_kl(p, q)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
        assert not torch.allclose(kl_divergence(p, q).double(), expected, rtol=1e-2, atol=0)

    def test_sums_over_coordinates(self):
        """KL of N(0, 1) from N(1, 1) is ½; three coordinates make 3/2."""
        zero, one = torch.zeros(4, 3), torch.ones(4, 3)
        p, q = Independent(Normal(zero, one), 1), Independent(Normal(one, one), 1)
        torch.testing.assert_close(joint_kl(p, q), torch.full((4,), 1.5))

    def test_is_outside_the_graph(self):
        logits = torch.randn(4, 3, requires_grad=True)
        p = Categorical(logits=logits)
        assert not joint_kl(p, p).requires_grad
