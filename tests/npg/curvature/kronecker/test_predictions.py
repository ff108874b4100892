"""Predictions: what outputs stand for, what is handed over, and what is wrong."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, MultivariateNormal

from npg.curvature.kronecker import KroneckerFisher
from npg.errors import ConfigurationError
from npg.likelihoods import as_distribution
from tests.npg.curvature.kronecker.helpers import (
    EXACT,
    assert_same_moments,
    finished,
    measured,
)
from tests.npg.oracles import mlp


class TestLikelihood:
    @pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
    @pytest.mark.parametrize("last", [nn.Flatten(0), nn.Identity()])
    def test_that_does_not_fit_the_output_is_refused(self, last, kind):
        model = nn.Sequential(nn.Linear(3, 1), last)
        KroneckerFisher(model, family="categorical", kind=kind)
        estimator = KroneckerFisher(model, family="categorical", kind=kind)
        with pytest.raises(ConfigurationError, match='"bernoulli"'):
            model(torch.randn(4, 3)).sum().backward()
        assert estimator.seen == 0

    def test_of_one_number_per_sample(self):
        model, x = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), torch.randn(4, 3)
        flat = measured(model, x, family="bernoulli")
        assert_same_moments(flat, measured(model[0], x, family="bernoulli"))

    def test_exact_needs_one_row_of_tensors_per_sample(self):
        class Shared(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(3, 2)

            def forward(self, x):
                mean = self.layer(x)
                return MultivariateNormal(mean, scale_tril=torch.eye(2))

        model, x = Shared(), torch.randn(4, 3)
        estimator = KroneckerFisher(model, kind="exact")
        estimator.observe(model(x))
        signals = finished(estimator).blocks[0].moments[1]
        torch.testing.assert_close(signals, torch.eye(2), **EXACT)


class TestNumbersThatAreNotFinite:
    @pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
    @pytest.mark.parametrize("family", ["categorical", "bernoulli", "normal", "mse"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_show_in_the_sums_and_do_not_raise(self, value, family, kind):
        model, x = mlp(), torch.randn(4, 3)
        estimator = KroneckerFisher(model, family=family, kind=kind)
        x[1, 1] = value
        model(x).square().sum().backward()
        estimator.finish()
        assert estimator.seen == 1
        assert not bool(estimator.finite())
        estimator.clear()
        model(torch.randn(4, 3)).square().sum().backward()
        finished(estimator)

    @pytest.mark.parametrize("kind", ["exact", "sampled"])
    def test_of_samples_that_do_not_count_only(self, kind):
        """Padding that the model made of no number, and the mask leaves out."""
        model, x = mlp(), torch.randn(4, 3)
        estimator = KroneckerFisher(model, kind=kind)
        logits = torch.where(torch.tensor([True, True, False, True])[:, None], model(x), torch.nan)
        mask = ~logits.isnan().any(1)
        estimator.observe(Categorical(logits=logits, validate_args=False), mask)
        finished(estimator)

    @pytest.mark.parametrize("kind", ["exact", "sampled"])
    def test_illegal_actions_are_legal(self, kind):
        model, x = mlp(), torch.randn(4, 3)
        estimator = KroneckerFisher(model, kind=kind)
        legal = torch.tensor([True, False, True])
        logits = model(x).masked_fill(~legal, -torch.inf)
        estimator.observe(Categorical(logits=logits))
        signals = finished(estimator).blocks[-1].moments[1]
        assert not signals[1].any()
        assert signals[0, 0] > 0


class TestObserve:
    def test_of_a_tensor_that_the_model_returned(self):
        model, x = mlp(), torch.randn(6, 3)
        expected = measured(model, x, family="categorical")
        estimator = KroneckerFisher(model, kind="exact")
        estimator.observe(Categorical(logits=model(x)))
        assert_same_moments(expected, finished(estimator))

    def test_of_layers_called_one_by_one(self):
        model, x = mlp(), torch.randn(6, 3)
        expected = measured(model, x, family="categorical")
        estimator = KroneckerFisher(model, kind="exact")
        hidden = x
        for layer in model:
            hidden = layer(hidden)
        estimator.observe(as_distribution(hidden, "categorical"))
        assert_same_moments(expected, finished(estimator))

    def test_of_several_passes_in_any_order(self):
        model, x = mlp(), torch.randn(6, 3)
        expected = measured(model, x, family="categorical")
        estimator = KroneckerFisher(model, kind="exact")
        first, second = (Categorical(logits=model(half)) for half in x.split(3))
        estimator.observe(second)
        estimator.observe(first)
        assert estimator.seen == 2
        assert_same_moments(expected, finished(estimator))

    def test_beside_a_likelihood_is_for_outputs_that_are_no_tensors(self):
        class Policy(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = mlp()

            def forward(self, x):
                return Categorical(logits=self.body(x))

        policy, x = Policy(), torch.randn(6, 3)
        estimator = KroneckerFisher(policy, family="categorical", kind="exact")
        estimator.observe(policy(x))
        expected = measured(policy.body, x, family="categorical")
        assert_same_moments(expected, finished(estimator))
        estimator = KroneckerFisher(policy.body, family="categorical")
        with pytest.raises(ConfigurationError, match="need no observe"):
            estimator.observe(Categorical(logits=policy.body(x)))

    def test_twice_or_of_an_evaluated_model_is_refused(self):
        model, x = mlp(), torch.randn(6, 3)
        estimator = KroneckerFisher(model)
        prediction = Categorical(logits=model(x))
        estimator.observe(prediction)
        with pytest.raises(ConfigurationError, match=r"model\.train\(\)"):
            estimator.observe(prediction)
        with pytest.raises(ConfigurationError, match=r"model\.train\(\)"):
            estimator.observe(Categorical(logits=model.eval()(x)))
        with torch.no_grad(), pytest.raises(ConfigurationError, match="no graph"):
            estimator.observe(Categorical(logits=model(x)))

    def test_is_refused_for_the_empirical_kind(self):
        model, x = mlp(), torch.randn(6, 3)
        estimator = KroneckerFisher(model, kind="empirical")
        with pytest.raises(ConfigurationError, match="observes no prediction"):
            estimator.observe(Categorical(logits=model(x)))

    def test_does_nothing_between_the_steps_that_measure(self):
        model, x = mlp(), torch.randn(6, 3)
        estimator = KroneckerFisher(model)
        estimator.capture.active = False
        estimator.observe(Categorical(logits=model(x)))
        assert estimator.seen == 0
