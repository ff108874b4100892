"""The losses of an actor-critic: of log π(a|s) and of V, each with its slope.

A loss maps a vector [N] to its mean and to the mean's derivative by every entry, [N]. Autograd
takes the first, and passes written by hand the second.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Loss = Callable[[Tensor], tuple[Tensor, Tensor]]


class Objective(NamedTuple):
    """L = policy(log π) + ``ent_coef`` entropy + value(V), without the weights of the last two.

    Attributes:
        policy: Of log π(a|s), [N].
        value: Of V(s), [N].
        ent_coef: Weight of −mean H.
        vf_coef: Weight of the value loss.
    """

    policy: Loss
    value: Loss
    ent_coef: float
    vf_coef: float


class PolicyGradient:
    """−mean A log π(a|s).

    Args:
        advantages: A, [N].
    """

    def __init__(self, advantages: Tensor) -> None:
        self.advantages = advantages

    def __call__(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss and its slope in log π."""
        slope = self.advantages / -len(log_probs)
        return (slope * log_probs).sum(), slope


class ClippedSurrogate:
    """−mean min(r A, clip(r, 1 − ε, 1 + ε) A), with r = π(a|s) / π_old(a|s).

    A sample whose ratio has left the interval, and whose advantage would have it go further, has no
    slope.

    Args:
        advantages: A, [N].
        old_log_probs: log π_old(a|s), [N].
        clip_range: ε.

    Attributes:
        approx_kl: Of the last call: mean (r − 1 − log r), which estimates KL(π_old ‖ π) and is
            never negative (Schulman, "Approximating KL divergence", 2020).
        clip_fraction: Of the last call: share of ratios outside of the interval.
    """

    def __init__(self, advantages: Tensor, old_log_probs: Tensor, clip_range: float) -> None:
        self.advantages, self.old_log_probs = advantages, old_log_probs
        self.low, self.high = 1 - clip_range, 1 + clip_range
        self.approx_kl = self.clip_fraction = advantages.new_zeros(())

    def __call__(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss and its slope in log π, which is that of −mean r A where it has one."""
        log_ratio = log_probs - self.old_log_probs
        excess = torch.expm1(log_ratio)  # r − 1, also where it is small
        ratio = excess + 1
        clipped_ratio = torch.clamp(ratio, self.low, self.high)
        surrogate = self.advantages * ratio
        clipped = self.advantages * clipped_ratio
        loss = -torch.minimum(surrogate, clipped).mean()
        with torch.no_grad():
            slope = (surrogate <= clipped) * surrogate / -len(ratio)
            self.approx_kl = (excess - log_ratio).mean()
            self.clip_fraction = torch.count_nonzero(ratio != clipped_ratio) / len(ratio)
        return loss, slope


class SquaredError:
    """Mean (V − R)².

    Args:
        returns: R, [N].
    """

    def __init__(self, returns: Tensor) -> None:
        self.returns = returns

    def __call__(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss and its slope in V."""
        residual = values - self.returns
        return torch.dot(residual, residual) / len(residual), residual * (2 / len(residual))


class ClippedSquaredError(SquaredError):
    """Mean (V_old + clip(V − V_old, −ε, ε) − R)²: values that moved by more have no slope.

    Args:
        returns: R, [N].
        old_values: V_old, [N].
        clip_range: ε, in units of the return.
    """

    def __init__(self, returns: Tensor, old_values: Tensor, clip_range: float) -> None:
        super().__init__(returns)
        self.old_values, self.clip_range = old_values, clip_range

    def __call__(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss and its slope in V."""
        moved = values - self.old_values
        clipped = torch.clamp(moved, -self.clip_range, self.clip_range)
        loss, slope = super().__call__(self.old_values + clipped)
        return loss, slope * (moved == clipped)
