"""What agents on the ranks of ``torch.distributed`` hold in common: gradients, statistics, weights.

Every rank steps environments of its own. What an update measures of their samples is averaged over
the ranks where it is measured, so that all of them take the same step.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from npg import ranks

if TYPE_CHECKING:
    from agents.on_policy import OnPolicy


def average_gradients(
    parameters: Iterable[Tensor], share: float = 1.0, told: Tensor | None = None
) -> None:
    """Averages what ``backward()`` left in ``grad``.

    Args:
        parameters: The same on every rank.
        share: This rank's share of the samples, times the number of ranks.
        told: What else to average, in the same message.
    """
    if ranks.count() > 1:
        gradients = [p.grad for p in parameters if p.grad is not None]
        ranks.average_(gradients if told is None else [*gradients, told], share)


def begin_alike(model: "OnPolicy") -> None:
    """Gives all ranks the policy of rank 0; what it was seeded with differs."""
    ranks.share_([*model.policy.parameters(), *model.policy.buffers()])


@torch.no_grad()
def stay_alike(model: "OnPolicy") -> None:
    """Averages the buffers that batches moved, and makes sure that parameters are the same still.

    Args:
        model: After an update.

    Raises:
        NumericalError: If they are not.
    """
    if ranks.count() == 1:
        return
    ranks.average_([b for b in model.policy.buffers() if b.is_floating_point()])
    ranks.check_equal(model.policy.parameters(), "policies")


class CommonStatistics:
    """The running means of a normaliser, of what all ranks have seen.

    Between two calls each rank's follow its own environments, so that a step needs no word from the
    others.

    Args:
        normaliser: This rank's, which becomes rank 0's when this is made.
    """

    def __init__(self, normaliser: VecNormalize) -> None:
        self.normaliser = normaliser
        self.before = []
        for own in _statistics(normaliser):
            values = (own.mean, own.var, own.count)
            mean, var, count = (torch.tensor(value, dtype=torch.float64) for value in values)
            ranks.share_([mean, var, count])
            own.mean, own.var, own.count = mean.numpy(), var.numpy(), float(count)
            self.before.append((own.mean, own.var, own.count))

    def merge(self) -> None:
        """Adds up what every rank saw since the last time.

        With deviations from the mean μ₀ of that time, sums of x − μ₀ and (x − μ₀)² add up.
        """
        for i, (own, (mean, var, count)) in enumerate(
            zip(_statistics(self.normaliser), self.before, strict=True)
        ):
            away = own.mean - mean
            new = np.stack(
                [
                    np.broadcast_to(own.count - count, np.shape(own.mean)),
                    away * own.count,
                    (own.var + away**2) * own.count - var * count,
                ]
            )
            counted, first, second = ranks.summed(torch.as_tensor(new)).numpy()
            total = count + float(np.max(counted))
            shift = first / total
            own.mean = mean + shift
            own.var = (var * count + second) / total - shift**2
            own.count = total
            self.before[i] = (own.mean, own.var, own.count)


def _statistics(normaliser: VecNormalize) -> Iterable[RunningMeanStd]:
    if normaliser.norm_obs:
        observed = normaliser.obs_rms
        yield from observed.values() if isinstance(observed, dict) else [observed]
    if normaliser.norm_reward:
        yield normaliser.ret_rms
