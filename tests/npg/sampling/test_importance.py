import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from npg.sampling import Mixture, effective_sample_size, normalised_weights, tempered


class TestTempered:
    def test_weights_sum_to_one(self):
        weights = normalised_weights(tempered(torch.randn(9), 0.1))
        assert float(weights.sum()) == pytest.approx(1, abs=1e-12)

    @pytest.mark.parametrize("constant", [1.0, -1e6, 1e9])
    def test_a_constant_changes_nothing(self, constant):
        objectives = torch.tensor([0.5, 0.25, 1.0, -3.0], dtype=torch.float64)
        one = normalised_weights(tempered(objectives, 0.7))
        other = normalised_weights(tempered(objectives + constant, 0.7))
        torch.testing.assert_close(one, other, atol=abs(constant) * 1e-15, rtol=0)

    def test_is_a_softmax(self):
        objectives = torch.randn(5, dtype=torch.float64)
        expected = torch.softmax(-objectives / 0.3, 0)
        torch.testing.assert_close(normalised_weights(tempered(objectives, 0.3)), expected)

    def test_an_infinite_temperature_counts_all_alike(self):
        objectives = torch.tensor([1.7e308, -1.7e308, math.nan], dtype=torch.float64)
        assert normalised_weights(tempered(objectives, math.inf)).tolist() == [0.5, 0.5, 0]

    def test_what_is_not_finite_has_no_weight(self):
        objectives = torch.tensor([math.nan, 1.0, math.inf, 1.0, -math.inf])
        weights = normalised_weights(tempered(objectives, 1.0))
        assert weights.tolist() == [0, 0.5, 0, 0.5, 0]

    @pytest.mark.parametrize("scale", [1e-300, 1e300])
    def test_any_scale_is_finite(self, scale):
        objectives = scale * torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
        weights = normalised_weights(tempered(objectives, 1.0))
        assert bool(torch.isfinite(weights).all())
        assert float(weights.sum()) == pytest.approx(1)


def test_effective_sample_size():
    assert effective_sample_size(torch.full((4,), 0.25)) == 4
    assert effective_sample_size(torch.tensor([1.0, 0, 0, 0])) == 1
    assert effective_sample_size(torch.tensor([0.5, 0.5, 0, 0])) == 2


def draws(size, mean, sigma, count, seed=0):
    """Noise, signs, who is guided, and the displacements."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, size, generator=generator, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(count)[:count]
    guided = [i % 3 > 0 for i in range(count)]
    steps = [
        s * sigma * e + (mean if g else 0) for s, e, g in zip(signs, noise, guided, strict=True)
    ]
    return noise, signs, guided, torch.stack(steps)


def log_densities(size, mean, sigma, exploration, count, seed=0):
    noise, signs, guided, steps = draws(size, mean, sigma, count, seed)
    mixture = Mixture(exploration, float((mean / sigma).square().sum()))
    ours = [
        mixture.log_density(float(e @ e), float(s * e @ (mean / sigma)), guided=g)
        for e, s, g in zip(noise, signs, guided, strict=True)
    ]
    return torch.tensor(ours, dtype=torch.float64), steps


class TestMixture:
    @pytest.mark.parametrize("exploration", [0.5, 0.1, 0.99])
    def test_agrees_with_torch(self, exploration):
        mean, sigma = torch.randn(2, 6, dtype=torch.float64)
        sigma = sigma.abs() + 0.1
        ours, steps = log_densities(6, mean, sigma, exploration, 12)
        shares = Categorical(torch.tensor([exploration, 1 - exploration], dtype=torch.float64))
        parts = Normal(torch.stack([0 * mean, mean]), sigma.expand(2, -1))
        theirs = MixtureSameFamily(shares, Independent(parts, 1)).log_prob(steps)
        # Up to the constant that both components share.
        constant = -float(sigma.log().sum()) - 3 * math.log(2 * math.pi)
        torch.testing.assert_close(ours + constant, theirs)

    @pytest.mark.parametrize(("exploration", "centre"), [(1.0, 0.0), (0.0, 1.0)])
    def test_one_component_is_a_normal_distribution(self, exploration, centre):
        mean = torch.randn(4, dtype=torch.float64)
        ours, steps = log_densities(4, mean, torch.tensor(0.5), exploration, 5)
        theirs = Normal(centre * mean, 0.5).log_prob(steps).sum(1)
        torch.testing.assert_close(ours - ours[0], theirs - theirs[0])

    def test_a_million_dimensions_do_not_underflow(self):
        size = 10**6
        mean = torch.full((size,), 0.3, dtype=torch.float64)
        ours, steps = log_densities(size, mean, torch.tensor(0.1, dtype=torch.float64), 0.5, 4)
        assert bool(torch.isfinite(ours).all())
        assert float(ours.max()) < -(10**5)  # exp of it is 0
        weights = normalised_weights(-ours)
        assert float(weights.sum()) == pytest.approx(1)
        # By hand: whichever component a step is from, the other one does not count.
        nearest = torch.minimum(steps.square().sum(1), (steps - mean).square().sum(1)) / 0.1**2
        torch.testing.assert_close(ours, math.log(0.5) - nearest / 2, rtol=1e-9, atol=0)

    @pytest.mark.parametrize(("size", "most"), [(10, 2.6), (10**3, 1.5), (10**5, 1.05)])
    def test_with_a_uniform_reference_few_samples_count_in_many_dimensions(self, size, most):
        counts = []
        for seed in range(20):
            mean = torch.randn(size, dtype=torch.float64)
            ours, _ = log_densities(size, mean, mean.abs().mean(), 0.5, 4, seed)
            counts.append(effective_sample_size(normalised_weights(-ours)))
        assert 1 <= sum(counts) / len(counts) < most
