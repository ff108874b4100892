"""Which distribution a prediction is: products, tensors with a name, new families, refusals."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Exponential,
    Independent,
    Normal,
    Poisson,
    kl_divergence,
)
from torch.nn import functional as F

import npg.likelihoods
from npg.curvature import Fisher
from npg.errors import ConfigurationError
from npg.likelihoods import Likelihood, Product, as_distribution, joint_kl, likelihood, register
from tests.npg.families import mixed, normal
from tests.npg.oracles import TIGHT


class TestAmbiguity:
    @pytest.mark.parametrize(
        "distribution",
        [
            Normal(torch.zeros(4, 2), torch.ones(4, 2)),
            Bernoulli(logits=torch.zeros(4, 2)),
            Independent(Normal(torch.zeros(4, 2), torch.ones(4, 2)), 0),
            Independent(Independent(Bernoulli(logits=torch.zeros(4, 2)), 0), 0),
            Product([Normal(torch.zeros(4, 2), torch.ones(4, 2))]),
        ],
    )
    def test_coordinates_or_samples_is_not_guessed(self, distribution):
        with pytest.raises(ConfigurationError, match=r"ambiguous.*Independent\(distribution, 1\)"):
            likelihood(distribution)

    def test_what_is_clear_is_accepted(self):
        two = Normal(torch.zeros(4, 2), torch.ones(4, 2))
        three = Normal(torch.zeros(4, 3, 2), torch.ones(4, 3, 2))
        for distribution in (Independent(two, 1), Independent(three, 1), Independent(three, 2)):
            assert likelihood(distribution)


class TestProduct:
    def test_matches_its_parts(self):
        p = mixed()
        a, b, c, d, e = p.components
        assert p.batch_shape == (4,)
        assert p.event_shape == (7,)
        values = [component.sample() for component in p.components]
        joined = p.join(values)
        assert joined.shape == (4, 7)
        for piece, value in zip(p.split(joined), values, strict=True):
            torch.testing.assert_close(piece, value.to(piece))
        expected = sum(x.log_prob(v) for x, v in zip(p.components, values, strict=True))
        torch.testing.assert_close(p.log_prob(joined), expected, **TIGHT)
        expected = sum(x.entropy() for x in (a, b, c, d, e))
        torch.testing.assert_close(p.entropy(), expected, **TIGHT)
        assert p.sample().shape == (4, 7)
        assert p.sample((5,)).shape == (5, 4, 7)
        assert p.log_prob(p.sample((5,))).shape == (5, 4)

    def test_integers_on_both_ends_do_not_truncate_the_middle(self):
        ends = Categorical(logits=torch.zeros(4, 3))
        p = Product([ends, normal(4), ends])
        middle = torch.tensor([0.5, -0.25, 1.75, 2.5])
        zeros = torch.zeros(4, dtype=torch.int64)
        torch.testing.assert_close(p.join([zeros, middle, zeros])[:, 1], middle)

    def test_integers_stay_integers(self):
        ends = Categorical(logits=torch.zeros(4, 3))
        assert Product([ends, ends]).sample().dtype == torch.int64

    def test_refuses_nothing_and_unequal_batches(self):
        with pytest.raises(ConfigurationError, match="at least one"):
            Product([])
        with pytest.raises(ConfigurationError, match="share a batch shape"):
            Product([Categorical(logits=torch.zeros(4, 3)), Categorical(logits=torch.zeros(5, 3))])


class TestAsDistribution:
    def test_categorical_is_the_cross_entropy(self):
        logits, y = torch.randn(6, 3), torch.randint(3, (6,))
        p = as_distribution(logits, "categorical")
        torch.testing.assert_close(-p.log_prob(y).mean(), F.cross_entropy(logits, y), **TIGHT)

    @pytest.mark.parametrize("shape", [(6,), (6, 2), (6, 2, 3)])
    def test_others_have_one_sample_per_row(self, shape):
        output = torch.randn(shape)
        for name in ("bernoulli", "normal", "mse"):
            p = as_distribution(output, name)
            assert p.batch_shape == (6,)
            assert p.event_shape == shape[1:]
            assert likelihood(p)
        y = torch.bernoulli(torch.full(shape, 0.5))
        found = as_distribution(output, "bernoulli").log_prob(y).sum()
        expected = -F.binary_cross_entropy_with_logits(output, y, reduction="sum")
        torch.testing.assert_close(found, expected, **TIGHT)
        y = torch.randn(shape)
        two = [as_distribution(output, "normal").log_prob(v).mean() for v in (y, output)]
        half = 0.5 * (output - y).square().sum() / 6
        torch.testing.assert_close(two[1] - two[0], half, **TIGHT)
        two = [as_distribution(output, "mse").log_prob(v).mean() for v in (y, output)]
        torch.testing.assert_close(two[1] - two[0], F.mse_loss(output, y), **TIGHT)

    def test_callable_and_distribution(self):
        output = torch.randn(6, 2)
        p = as_distribution(output, lambda o: Normal(o[:, 0], F.softplus(o[:, 1])))
        assert isinstance(p, Normal)
        assert as_distribution(p, "categorical") is p

    @pytest.mark.parametrize("family", [None, "gaussian"])
    def test_a_bare_tensor_is_not_guessed(self, family):
        with pytest.raises(ConfigurationError, match=r"likelihood=.*categorical"):
            as_distribution(torch.randn(6, 2), family)

    @pytest.mark.parametrize("shape", [(), (6,), (6, 1), (6, 2, 1), (1,)])
    def test_logits_without_classes_are_refused(self, shape):
        with pytest.raises(ConfigurationError, match=r"classes|single number") as error:
            as_distribution(torch.randn(shape), "categorical")
        assert shape == () or '"bernoulli"' in str(error.value)

    @pytest.mark.parametrize("name", ["bernoulli", "normal", "mse"])
    def test_a_single_number_is_no_batch(self, name):
        with pytest.raises(ConfigurationError, match="not its loss"):
            as_distribution(torch.tensor(1.0), name)

    @pytest.mark.parametrize("name", ["bernoulli", "normal", "mse"])
    def test_an_empty_batch_is_no_index_error(self, name):
        assert as_distribution(torch.zeros(0, 3), name).batch_shape == (0,)


class PoissonLikelihood(Likelihood[Poisson]):
    """Fisher in the rate: 1/r."""

    def tensors(self, distribution):
        return (distribution.rate,)

    def rebuild(self, distribution, tensors):
        return Poisson(tensors[0], validate_args=False)

    def fisher_product(self, distribution, tangents):
        return (tangents[0] / distribution.rate,)

    def sample(self, distribution, generator):
        return torch.poisson(distribution.rate, generator)


class TestRegister:
    def test_a_new_family_serves_every_matrix(self, monkeypatch):
        registry = npg.likelihoods.registry
        monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
        model, x = nn.Linear(2, 1), torch.randn(50, 2)

        def predict():
            return Poisson(model(x).squeeze(-1).exp(), validate_args=False)

        with pytest.raises(ConfigurationError, match=r"Poisson.*register"):
            Fisher(model, predict)
        register(Poisson, PoissonLikelihood())
        # In θ of log r = θ·x the Fisher is the mean of r x xᵀ, x with a one for the bias.
        inputs = torch.cat([x, torch.ones(50, 1)], 1)
        expected = (inputs * predict().rate.detach().unsqueeze(1)).T @ inputs / 50
        torch.testing.assert_close(Fisher(model, predict).to_dense(), expected, **TIGHT)
        generator = torch.Generator().manual_seed(0)
        draws = [
            Fisher(model, predict, kind="sampled", generator=generator).to_dense()
            for _ in range(400)
        ]
        stack = torch.stack(draws)
        error = stack.std(0) / math.sqrt(400)
        assert bool(((stack.mean(0) - expected).abs() < 5 * error).all())
        p, q = predict(), Poisson(predict().rate * 1.1)
        torch.testing.assert_close(joint_kl(p, q), kl_divergence(p, q).detach(), **TIGHT)

    def test_subclasses_use_the_nearest_base(self, monkeypatch):
        registry = npg.likelihoods.registry
        monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

        class Policy(Categorical):
            pass

        assert likelihood(Policy(logits=torch.zeros(4, 3))) is likelihood(
            Categorical(logits=torch.zeros(4, 3))
        )
        own = npg.likelihoods.families.CategoricalLikelihood()
        register(Policy, own)
        assert likelihood(Policy(logits=torch.zeros(4, 3))) is own

    def test_unknown_families_are_named(self):
        with pytest.raises(ConfigurationError, match=r"Exponential.*Categorical.*register"):
            likelihood(Exponential(torch.ones(3)))
        with pytest.raises(ConfigurationError, match="Exponential"):
            likelihood(Independent(Exponential(torch.ones(3, 2)), 1))
        with pytest.raises(ConfigurationError, match="Exponential"):
            likelihood(Product([Exponential(torch.ones(3))]))
