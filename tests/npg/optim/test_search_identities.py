"""What searches estimate: policy gradients, smoothed functions' gradients, damped Newton steps."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from npg.linalg import assign_, split
from npg.optim import EvolutionStrategies, MLEGuidedSearch
from tests.npg.optim.search_problems import classifier, parameters_of, wrong
from tests.pairs import pairs

SIZE, SIGMA = 3, 0.5
# Standard errors that a component's mean may be off, the least number of them being 16 estimates':
# once in 6,000 draws of Student's distribution. The seeds are fixed.
BOUND = 5.0
ANTITHETIC = pytest.mark.parametrize("antithetic", [True, False])


def point(size=SIZE):
    """Where the functions below are looked at."""
    return torch.linspace(-1.0, 0.7, size, dtype=torch.float64)


@functools.cache
def hessian(size=SIZE):
    """Positive definite, of eigenvalues from 0.5 to 3, and not diagonal."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q
    return basis @ torch.diag(torch.linspace(0.5, 3.0, size).double()) @ basis.T


def quadratic(x):
    """xᵀHx/2 + Σ x."""
    size = x.shape[-1]
    return ((x @ hessian(size)) * x).sum(-1) / 2 + x.sum(-1)


def cubic(x):
    """Σ x³."""
    return (x**3).sum(-1)


def deviations(estimates, exact):
    """How many standard errors each component's mean is off."""
    return (estimates.mean(0) - exact).abs() / (estimates.std(0) / len(estimates) ** 0.5)


@pytest.mark.uncounted  # thousands of the same steps, as below
class TestEvolutionStrategies:
    @ANTITHETIC
    @pytest.mark.parametrize("sigma", [0.01, 0.5])
    def test_are_the_policy_gradient_of_a_gaussian_over_parameters(self, antithetic, sigma):
        """Of a metric that has no derivative, and for the same draws: mean (l − b) ∇ log p."""
        model, x, y = classifier()
        parameters = list(model.parameters())
        mean = parameters_of(model).requires_grad_()
        optimizer = EvolutionStrategies(
            model, 1.0, candidates=12, sigma=sigma, antithetic=antithetic, shaping="none"
        )
        candidates = optimizer.ask()
        values = []
        for row in [*candidates, mean.detach()]:
            assign_(parameters, split(row, parameters))
            values.append(wrong(model(x), y))
        objectives = torch.stack(values[:-1])
        optimizer.tell(objectives)
        estimate = mean.detach() - parameters_of(model)
        others = (objectives.sum() - objectives) / (len(objectives) - 1)
        baseline = 0.0 if antithetic else others  # no constant counts where noise comes in pairs
        log_probability = Normal(mean, sigma).log_prob(candidates).sum(-1)
        loss = ((objectives - baseline) * log_probability).mean()
        (score,) = torch.autograd.grad(loss, mean)
        assert score.norm() > 0
        torch.testing.assert_close(estimate, score, rtol=1e-9, atol=1e-12 / sigma)

    @pytest.mark.parametrize(
        *pairs(function=[quadratic, cubic], candidates=[4, 16], antithetic=[True, False])
    )
    def test_are_without_bias(self, function, candidates, antithetic):
        """A mean that knows its own noise would make four candidates' gradient 3/4 as long."""
        x = nn.Parameter(point())
        optimizer = EvolutionStrategies(
            [x], 1.0, candidates=candidates, sigma=SIGMA, antithetic=antithetic, shaping="none"
        )
        estimates = []
        for _ in range(6400 // candidates):
            optimizer.tell(function(optimizer.ask()))
            estimates.append(point() - x.detach())
            assign_([x], [point()])
        estimates = torch.stack(estimates)
        # E (x + σε)³ = x³ + 3 σ² x; a quadratic gains a constant.
        exact = hessian() @ x + 1 if function is quadratic else 3 * x**2 + 3 * SIGMA**2
        assert deviations(estimates, exact).max() < BOUND
        if candidates == 4:
            assert deviations(estimates, 0.75 * exact).max() > BOUND
        if function is cubic:
            assert deviations(estimates, 3 * x**2).max() > BOUND

    @pytest.mark.parametrize("shaping", ["ranks", "utilities", "none"])
    @ANTITHETIC
    def test_a_constant_changes_nothing(self, shaping, antithetic):
        ends = []
        for constant in (0.0, 1024.0):
            model = nn.ParameterList([point()])
            optimizer = EvolutionStrategies(
                model, 0.1, candidates=8, shaping=shaping, antithetic=antithetic
            )
            optimizer.tell(cubic(optimizer.ask()) + constant)
            ends.append(parameters_of(model))
        assert not torch.equal(ends[0], point())
        torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-10)


def stepped(function, size=SIZE, **options):
    """The step that guided search takes on a function of a vector, [size]."""
    x = nn.Parameter(point(size))
    settings = {"scale": "absolute", "sigma": SIGMA, "max_grad_norm": math.inf, **options}
    report = MLEGuidedSearch([x], **settings).step(lambda: function(x))
    assert report.accepted
    return x.detach() - point(size)


def several(function, size=SIZE, **options):
    """Steps of 16 seeds, of so many candidates that self-normalised weights' bias is far below."""
    return torch.stack(
        [stepped(function, size, candidates=200, seed=seed, **options) for seed in range(16)]
    )


@pytest.mark.uncounted
class TestGuidedSearch:
    @staticmethod
    def closed_form(temperature, exploration, size=SIZE):
        """E wΔ / E w on the quadratic, Δ ~ λ N(0, σ²) + (1 − λ) N(−g, σ²).

        Around a centre m the gradient is g + Hm, the mean m − (H + α/σ² I)⁻¹ (g + Hm).
        """
        curvature = hessian(size)
        gradient = curvature @ point(size) + 1
        inverse = torch.linalg.inv(curvature + temperature / SIGMA**2 * torch.eye(size).double())
        means, logarithms = [], []
        for centre, share in ((0 * gradient, exploration), (-gradient, 1 - exploration)):
            there = gradient + curvature @ centre
            change = quadratic(point(size) + centre) - quadratic(point(size))
            means.append(centre - inverse @ there)
            gain = there @ inverse @ there / 2 - change
            logarithms.append(math.log(max(share, 1e-300)) + float(gain) / temperature)
        weights = torch.softmax(torch.tensor(logarithms, dtype=torch.float64), 0)
        return weights @ torch.stack(means)

    @ANTITHETIC
    @pytest.mark.parametrize(
        ("temperature", "exploration"), [(0.5, 1.0), (3.0, 1.0), (1.0, 0.5), (1.0, 0.0)]
    )
    def test_steps_to_the_closed_form_on_a_quadratic(self, temperature, exploration, antithetic):
        steps = several(
            quadratic, temperature=temperature, exploration=exploration, antithetic=antithetic
        )
        assert deviations(steps, self.closed_form(temperature, exploration)).max() < BOUND
        assert deviations(steps, self.closed_form(temperature / 4, exploration)).max() > BOUND

    def test_steps_to_the_minimum_with_a_uniform_reference(self):
        """exp(−l/α) alone is a Gaussian around the minimum: Newton's step, whatever α is.

        The proposals are wider than it, else the weights have no variance.
        """
        newton = -torch.linalg.solve(hessian(), hessian() @ point() + 1)
        steps = several(quadratic, temperature=0.3, reference="uniform", sigma=1.0)
        assert deviations(steps, newton).max() < BOUND
        assert deviations(steps, newton / 2).max() > BOUND

    def test_steps_down_a_linear_function(self):
        """By σ²/α times its gradient, in any direction and of any length."""
        gradient = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
        temperature = 1.5
        exact = -(SIGMA**2) / temperature * gradient
        steps = several(lambda x: gradient @ x, temperature=temperature, exploration=1.0)
        assert deviations(steps, exact).max() < BOUND
        assert deviations(steps, exact / 2).max() > BOUND

    @pytest.mark.parametrize("reference", ["proposal", "uniform"])
    def test_a_constant_or_a_unit_changes_nothing(self, reference):
        options = {"candidates": 8, "reference": reference, "exploration": 1.0}
        plain = stepped(quadratic, temperature=0.3, **options)
        shifted = stepped(lambda x: quadratic(x) + 1024, temperature=0.3, **options)
        scaled = stepped(lambda x: 1024 * quadratic(x), temperature=1024 * 0.3, **options)
        torch.testing.assert_close(shifted, plain, rtol=0, atol=1e-10)
        torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-12)
