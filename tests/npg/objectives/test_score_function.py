"""Score-function gradients against the gradients of expectations in closed form.

An estimate is the mean of independent runs. It may differ from the exact gradient by five of its
standard errors, which the runs themselves tell. The runs are copies of the batch side by side.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn
from torch.distributions import Bernoulli, Categorical, Gamma, Independent, Normal

from npg.errors import ConfigurationError, NumericalError
from npg.likelihoods import Product
from npg.objectives import macro_f1, score_function

RUNS, ERRORS = 2000, 5
REWARDS = torch.tensor([[1.0, 3.0, -2.0], [0.5, 0.0, 4.0]], dtype=torch.float64)  # [N, classes]


def estimates(loss_of, *leaves):
    """Gradients of each run, [RUNS, numbers], of a loss that is a mean over samples."""
    copies = [leaf.detach().repeat(RUNS, *[1] * (leaf.ndim - 1)) for leaf in leaves]
    found = torch.autograd.grad(
        loss_of(*[c.requires_grad_() for c in copies]), copies, create_graph=True
    )
    return RUNS * torch.cat([gradient.reshape(RUNS, -1) for gradient in found], 1), copies


def assert_unbiased(found, exact):
    standard_error = found.std(0) / math.sqrt(len(found))
    assert bool((standard_error < 0.1 * exact.abs().max()).all())  # else nothing would be tested
    assert bool(((found.mean(0) - exact.flatten()).abs() <= ERRORS * standard_error).all())


def exact_gradient(value, *leaves):
    found = torch.autograd.grad(value, leaves)
    return torch.cat([gradient.flatten() for gradient in found])


@pytest.fixture
def logits():
    return torch.tensor([[0.3, -0.2, 0.9], [1.0, 0.1, -0.4]], dtype=torch.float64).requires_grad_()


def reward_of_each(drawn):
    number = torch.arange(drawn.shape[-1])
    return REWARDS[number % 2, drawn]


def f1_of_the_batch(drawn):
    return macro_f1(drawn, torch.tensor([2, 0]), 3)


# --------------------------------------------------------------------------------- expectations


@pytest.mark.parametrize(
    ("baseline", "samples"),
    [
        ("leave-one-out", 2),
        ("leave-one-out", 8),
        ("none", 1),
        (torch.tensor(1.5), 3),
        (torch.tensor([0.5, 2.0]).repeat(RUNS), 1),
    ],
)
def test_rewards_of_single_samples(baseline, samples, logits):
    """−∇ mean over samples of Σ_k p_k r_k."""
    exact = exact_gradient(-(logits.softmax(1) * REWARDS).sum(1).mean(), logits)
    found, _ = estimates(
        lambda z: score_function(z, reward_of_each, samples=samples, baseline=baseline), logits
    )
    assert_unbiased(found.detach(), exact)


@pytest.mark.parametrize("baseline", ["leave-one-out", "none"])
def test_rewards_of_the_whole_batch(baseline, logits):
    """F1 of both labels together, all nine pairs of which are enumerated."""
    p = logits.softmax(1)
    expected = sum(
        p[0, a] * p[1, b] * float(f1_of_the_batch(torch.tensor([a, b])))
        for a, b in itertools.product(range(3), repeat=2)
    )
    found = []
    for _ in range(400):
        loss = score_function(logits, f1_of_the_batch, samples=16, baseline=baseline)
        found.append(torch.autograd.grad(loss, logits)[0].flatten())
    assert_unbiased(torch.stack(found), exact_gradient(-expected, logits))


def test_a_reward_for_each_sequence(logits):
    """Two tokens, one reward: 1 where both are equal. Its probability is Σ_k p_k q_k."""
    p, q = logits.softmax(1)
    found, _ = estimates(
        lambda z: score_function(z.view(RUNS, 2, 3), lambda y: y[..., 0] == y[..., 1], samples=8),
        logits,
    )
    assert_unbiased(found.detach(), exact_gradient(-(p * q).sum(), logits))


def test_a_normal_with_a_quadratic_reward():
    """E[−(y − 1)²] = −(μ − 1)² − σ²: ∇ of its negative is 2 (μ − 1) and 2 σ."""
    mean = torch.tensor([0.2, -0.5], dtype=torch.float64)
    std = torch.tensor([0.7, 1.2], dtype=torch.float64)
    found, _ = estimates(
        lambda m, s: score_function(Normal(m, s), lambda y: -(y - 1).square(), samples=8),
        mean,
        std,
    )
    assert_unbiased(found.detach(), torch.cat([mean - 1, std]))  # of the mean over two samples


def several_bernoullis(logits):
    return logits, logits.sigmoid().sum(1)


def several_normals(logits):
    return Independent(Normal(logits, 0.5), 1), logits.sum(1)


def product(logits):
    parts = [Categorical(logits=logits), Independent(Bernoulli(logits=logits[:, :2]), 1)]
    mean = (logits.softmax(1) * torch.arange(3)).sum(1) + logits[:, :2].sigmoid().sum(1)
    return Product(parts), mean


@pytest.mark.parametrize("prediction", [several_bernoullis, several_normals, product])
def test_events_of_several_coordinates(prediction, logits):
    """The reward is the sum of the coordinates, so its mean is the sum of their means."""
    found, _ = estimates(
        lambda z: score_function(
            prediction(z)[0], lambda y: y.sum(-1), samples=4, likelihood="bernoulli"
        ),
        logits,
    )
    exact = exact_gradient(-prediction(logits)[1].mean(), logits)
    assert_unbiased(found.detach(), exact)


def test_the_score_has_mean_zero(logits):
    """E[∇ log p] = 0: a constant reward has a gradient of noise, and none with the baseline."""
    found, _ = estimates(
        lambda z: score_function(z, torch.ones_like, samples=4, baseline="none"), logits
    )
    standard_error = found.std(0) / math.sqrt(RUNS)
    assert float(standard_error.min().detach()) > 0
    assert bool((found.mean(0).abs() <= ERRORS * standard_error).all())
    with_baseline, _ = estimates(lambda z: score_function(z, torch.ones_like), logits)
    assert float(with_baseline.abs().max().detach()) < 1e-13


def test_the_baseline_lowers_the_variance(logits):
    """The more, the larger the rewards' mean is beside their spread."""

    def variance(baseline):
        found, _ = estimates(
            lambda z: score_function(
                z, lambda y: reward_of_each(y) + 10, samples=8, baseline=baseline
            ),
            logits,
        )
        return float(found.detach().var(0).sum())

    assert variance("leave-one-out") < 0.1 * variance("none")


def test_the_hessian_is_unbiased_too(logits):
    """Of −Σ_k p_k r_k in the logits of one sample."""
    one = logits[:1].detach()
    found, copies = estimates(lambda z: score_function(z, lambda y: REWARDS[0][y], samples=16), one)
    rows = [torch.autograd.grad(found[:, k].sum(), copies, retain_graph=True)[0] for k in range(3)]
    exact = torch.autograd.functional.hessian(lambda z: -z.softmax(0) @ REWARDS[0], one[0])
    assert_unbiased(torch.stack(rows, 1).reshape(RUNS, -1), exact)


# ---------------------------------------------------------------------------------- single draws


def test_gradient_of_given_draws(logits):
    """−Σ (r − mean of the others) (1_k − p) / (S N), by hand."""
    seen = []

    def reward(drawn):
        seen.append(drawn)
        return reward_of_each(drawn)

    loss = score_function(logits, reward, samples=5)
    loss.backward()
    drawn, rewards = seen[0], reward_of_each(seen[0])
    p, expected = logits.detach().softmax(1), torch.zeros(2, 3, dtype=torch.float64)
    for s, n in itertools.product(range(5), range(2)):
        others = [float(rewards[t, n]) for t in range(5) if t != s]
        score = nn.functional.one_hot(drawn[s, n], 3) - p[n]
        expected[n] -= (rewards[s, n] - sum(others) / 4) * score / 10
    torch.testing.assert_close(logits.grad, expected, rtol=1e-12, atol=1e-14)
    assert loss.item() == pytest.approx(-rewards.mean().item(), rel=1e-14)


@pytest.mark.parametrize("baseline", ["leave-one-out", "none", torch.tensor(3.0)])
def test_the_value_is_minus_the_mean_reward(baseline, logits):
    rewards = []

    def reward(drawn):
        rewards.append(reward_of_each(drawn))
        return rewards[-1]

    loss = score_function(logits, reward, baseline=baseline)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(-rewards[0].mean().item(), rel=1e-14)


def test_rewards_may_be_of_any_kind(logits):
    """Hits as booleans, integers, NumPy arrays and lists: the same number of draws."""
    labels = torch.tensor([2, 0])
    kinds = [
        lambda y: y == labels,
        lambda y: (y == labels).int(),
        lambda y: (y == labels).numpy().astype(np.float32),
        lambda y: (y == labels).double().tolist(),
    ]
    results = []
    for reward in kinds:
        loss = score_function(logits, reward, generator=torch.Generator().manual_seed(1))
        results.append((loss.item(), torch.autograd.grad(loss, logits)[0]))
    for value, gradient in results[1:]:
        assert value == results[0][0]
        assert torch.equal(gradient, results[0][1])


def test_a_reward_of_someone_elses(logits):
    """scikit-learn's F1, draw by draw, in place of ours."""

    def theirs(drawn):
        return [f1_score([2, 0], row, average="macro", zero_division=0) for row in drawn]

    losses = [
        score_function(logits, reward, generator=torch.Generator().manual_seed(1))
        for reward in (theirs, f1_of_the_batch)
    ]
    ours, other = (torch.autograd.grad(loss, logits)[0] for loss in losses)
    torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_the_predictions(dtype):
    logits = torch.randn(4, 3, dtype=dtype, requires_grad=True)
    for reward in (lambda y: y.double(), lambda y: y.float(), lambda y: y):
        loss = score_function(logits, reward)
        assert loss.dtype == dtype
        assert torch.autograd.grad(loss, logits)[0].dtype == dtype


def test_rewards_have_no_gradient():
    """Even of a reward that has one: the score function alone is what is asked for."""
    scale = torch.ones(3, requires_grad=True)
    logits = torch.zeros(3, 2, requires_grad=True)
    score_function(logits, lambda y: y * scale).backward()
    assert scale.grad is None


def test_seeds(logits):
    def drawn_by(**options):
        seen = []
        score_function(logits, lambda y: seen.append(y) or y, samples=50, **options)
        return seen[0]

    first = drawn_by(generator=torch.Generator().manual_seed(7))
    state = torch.get_rng_state()
    assert torch.equal(drawn_by(generator=torch.Generator().manual_seed(7)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(drawn_by(generator=torch.Generator().manual_seed(8)), first)
    torch.manual_seed(3)
    one = drawn_by()
    torch.manual_seed(3)
    assert torch.equal(drawn_by(), one)


# ---------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be a whole number above 0, got 0"),
        ({"samples": 1}, "set samples to 2 or more"),
        ({"baseline": "mean"}, 'baseline must be "leave-one-out", "none" or a tensor'),
        ({"baseline": torch.zeros(3)}, r"baseline of shape \[3\] does not broadcast"),
        ({"baseline": torch.zeros(4, 16, 2)}, "does not broadcast"),
        ({"likelihood": "softmax"}, "likelihood='softmax' does not say"),
    ],
)
def test_arguments_that_cannot_work(options, message, logits):
    with pytest.raises(ConfigurationError, match=message):
        score_function(logits, reward_of_each, **options)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda y: y.double().mean(), r"reward must return \[16, 2\].*or \[16\].*; got \[\]"),
        (lambda y: y[0], r"got \[2\]"),
        (lambda y: y.T, r"got \[2, 16\]"),
        (lambda y: y.unsqueeze(-1), r"got \[16, 2, 1\]"),
        (lambda y: None, "reward must return a tensor or numbers, got NoneType"),
    ],
)
def test_rewards_of_the_wrong_kind(reward, message, logits):
    with pytest.raises(ConfigurationError, match=message):
        score_function(logits, reward)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_not_finite(bad, logits):
    def reward(drawn):
        rewards = reward_of_each(drawn)
        rewards[3, 1] = bad
        return rewards

    with pytest.raises(NumericalError, match=r"1 of 32 values that are not finite.*nan_to_num"):
        score_function(logits, reward)


def test_predictions_that_are_not_finite():
    with pytest.raises(NumericalError, match="the prediction is not finite"):
        score_function(torch.tensor([[0.0, math.nan]]), lambda y: y)


def test_a_family_that_nobody_registered():
    with pytest.raises(ConfigurationError, match="no likelihood is registered for Gamma"):
        score_function(Gamma(torch.ones(3), torch.ones(3)), lambda y: y)
