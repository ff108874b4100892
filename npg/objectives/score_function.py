"""The gradient of an expected reward that itself has none."""

from collections.abc import Callable
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from npg import likelihoods
from npg.errors import ConfigurationError, NumericalError

Baseline = Literal["leave-one-out", "none"]


def score_function(
    prediction: Distribution | Tensor,
    reward: Callable[[Tensor], object],
    *,
    samples: int = 16,
    baseline: Baseline | Tensor = "leave-one-out",
    likelihood: str | Callable[[Tensor], Distribution] = "categorical",
    generator: torch.Generator | None = None,
) -> Tensor:
    """−E[r(y)] over y ~ p, estimated from draws: a loss whose gradient is −E[(r − b) ∇log p(y)].

    The reward may be anything that can be computed of a prediction: hits, F1, an edit distance. The
    metric is optimised as a policy is trained, by REINFORCE. The value is minus the mean reward;
    derivatives of every order are estimates without bias of those of −E[r], by torch.autograd:
    the transforms of torch.func can neither draw nor see whether rewards are finite.

    ```python
    loss = score_function(model(x), lambda drawn: macro_f1(drawn, y, classes))
    ```

    One draw's r ∇log p says little about E[r], and much about how large r is. The leave-one-out
    baseline takes away the mean reward of the *other* draws, which leaves the expectation as it is,
    since E[∇log p] = 0, and removes most of that variance.

    Args:
        prediction: p, with its graph: a distribution with one sample per element of its
            ``batch_shape`` [N], or a model's output, read as ``likelihood`` says.
        reward: Draws [S, N, ...] → rewards, larger is better; without a gradient. Tensors, NumPy
            arrays and numbers will do, of any real type. Of shape [S, N], one for each draw of each
            sample; or [S], one for each draw of the whole batch, such as F1: then the
            log-probability is summed over the batch, which has N times the variance. Where
            ``batch_shape`` is [N, T], of sequences, rewards [S, N] are summed for likewise.
        samples: S, draws per sample. More have less variance (about as 1/S) and cost as many
            evaluations of the reward; the model runs once. Rewards of a whole batch deserve 64 and
            more.
        baseline: b. ``"leave-one-out"``: mean reward of the other draws (S ≥ 2). ``"none"``: 0. A
            tensor that broadcasts to the rewards and does not depend on the draws: a critic's
            values, or the rewards of the most probable labels.
        likelihood: How a tensor parametrises p, as :func:`npg.likelihoods.as_distribution` has it:
            ``"categorical"`` (logits), ``"bernoulli"``, ``"normal"``, a callable.
        generator: Draws the labels. Default: torch's own, which an optimizer that evaluates a
            closure several times a step sets back each time.

    Returns:
        A scalar with its graph.

    Raises:
        ConfigurationError: If an argument cannot work, or the rewards' shape fits neither.
        NumericalError: If a reward is not finite. To leave such draws out would favour whatever
            made them so; the reward has to say what they are worth.

    Reference:
        Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
        learning", 1992; Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!", 2019;
        Foerster et al., "DiCE: the infinitely differentiable Monte Carlo estimator", 2018.
    """
    _check(reward, samples, baseline)
    distribution = likelihoods.as_distribution(prediction, likelihood)
    with torch.no_grad():
        drawn = _draw(distribution, samples, generator)
        rewards = _rewards(reward(drawn), drawn, distribution)
        advantages = _advantages(rewards, baseline)
    log_probability = distribution.log_prob(drawn)
    # Sums and differences are at least in single precision, whatever the model computes in.
    kind = torch.promote_types(log_probability.dtype, torch.float32)
    # A reward depends on all that was drawn below its own dimensions.
    log_probability = log_probability.to(kind).reshape(*rewards.shape, -1).sum(-1)
    # p / p − 1: zero, with the derivatives of p / p.detach().
    ratio = torch.expm1(log_probability - log_probability.detach())
    value, weights = rewards.mean().to(kind), advantages.to(kind)
    if not bool(torch.isfinite(weights).all() & torch.isfinite(value)):
        raise NumericalError(
            f"rewards less their baseline are not finite in {kind}: divide them by their scale, "
            "and look at the baseline"
        )
    return -(value + (weights * ratio).mean())


def _check(reward: object, samples: object, baseline: object) -> None:
    if not callable(reward):
        raise ConfigurationError(
            f"reward must be a function of what is drawn, got a {type(reward).__name__}"
        )
    if not (isinstance(samples, Integral) and int(samples) >= 1):
        raise ConfigurationError(f"samples must be a whole number above 0, got {samples!r}")
    if isinstance(baseline, Tensor):
        return
    if not isinstance(baseline, str) or baseline not in ("leave-one-out", "none"):
        raise ConfigurationError(
            f'baseline must be "leave-one-out", "none" or a tensor, got {baseline!r}'
        )
    if baseline == "leave-one-out" and samples == 1:
        raise ConfigurationError(
            "one draw leaves no others for the leave-one-out baseline: set samples to 2 or more, "
            'or baseline to a tensor or "none"'
        )


def _draw(distribution: Distribution, samples: int, generator: torch.Generator | None) -> Tensor:
    """S values of each sample, [S, *batch_shape, *event_shape]."""
    family = likelihoods.likelihood(distribution)
    if any(bool(tensor.isnan().any()) for tensor in family.tensors(distribution)):
        raise NumericalError("the prediction is not finite: nothing can be drawn from it")
    drawn: Tensor = family.draws(distribution, samples, generator)
    return drawn


def _rewards(values: object, drawn: Tensor, distribution: Distribution) -> Tensor:
    """The rewards as a tensor, checked, in which differences of large ones do not get lost."""
    try:
        rewards = torch.as_tensor(values, device=drawn.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"reward must return a tensor or numbers, got {type(values).__name__} ({error})"
        ) from error
    allowed = (len(drawn), *distribution.batch_shape)
    if rewards.ndim == 0 or tuple(rewards.shape) != allowed[: rewards.ndim]:
        raise ConfigurationError(
            f"reward must return {list(allowed)}, a number for each draw of each sample, or "
            f"{list(allowed[:1])}, one for each draw of the batch; got {list(rewards.shape)}"
        )
    if rewards.is_complex() or not drawn.numel():
        what = "no samples" if not drawn.numel() else "complex rewards"
        raise ConfigurationError(f"the expected reward needs real rewards of samples, got {what}")
    if not bool(torch.isfinite(rewards).all()):
        count = int((~torch.isfinite(rewards)).sum())
        raise NumericalError(
            f"reward returned {count} of {rewards.numel()} values that are not finite: let it "
            "return what such draws are worth, by torch.nan_to_num for instance"
        )
    model = likelihoods.likelihood(distribution).tensors(distribution)[0].dtype
    exact = rewards.dtype if rewards.is_floating_point() else torch.float64
    return rewards.to(torch.promote_types(exact, torch.promote_types(model, torch.float32)))


def _advantages(rewards: Tensor, baseline: Baseline | Tensor) -> Tensor:
    if isinstance(baseline, Tensor):
        try:
            return rewards - baseline.detach().to(rewards).expand_as(rewards)
        except RuntimeError as error:
            raise ConfigurationError(
                f"baseline of shape {list(baseline.shape)} does not broadcast to the rewards' "
                f"{list(rewards.shape)}"
            ) from error
    if baseline == "none":
        return rewards
    # r − (sum − r) / (S − 1)
    return (rewards - rewards.mean(0)) * (len(rewards) / (len(rewards) - 1))
