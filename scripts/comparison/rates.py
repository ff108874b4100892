"""Learning rates: those that an optimizer is swept over, and the one that it did best with."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Protocol, TypeVar

from torch import nn

from npg import optim

# Begin the error of a run that failed for no fault of the program's, before a colon.
DIVERGED = "diverged"  # the numbers left the finite ones
TOO_SLOW = "too slow"  # a step takes longer than the budget
FACTOR = 3.0
DIGITS = 3  # the rate in a run's name, in its command and in its result is the same number


class Run(Protocol):
    """What is read of a run of an optimizer."""

    @property
    def seed(self) -> int | None: ...

    @property
    def rate(self) -> float | None: ...

    @property
    def status(self) -> str: ...

    @property
    def final_loss(self) -> float: ...


AnyRun = TypeVar("AnyRun", bound=Run)


def default(name: str) -> float:
    """Returns the learning rate that :func:`npg.optim.create` gives an optimizer.

    Args:
        name: Of the optimizer.

    Raises:
        ConfigurationError: If there is none of that name.
    """
    rate: float = optim.create(name, nn.Linear(2, 2)).param_groups[0]["lr"]
    return rate


def swept(name: str, count: int) -> list[float]:
    """Returns learning rates around an optimizer's own, each three times the one before.

    Args:
        name: Of the optimizer.
        count: Of the rates. The optimizer's own is the middle one; of an even number, the first
            above the middle.

    Raises:
        ConfigurationError: If there is no optimizer of that name.
    """
    centre = default(name)
    return [
        float(f"{centre * FACTOR ** (number - count // 2):.{DIGITS}g}") for number in range(count)
    ]


def final_losses(runs: Sequence[Run]) -> dict[float | None, float]:
    """Returns the final training loss at each rate, the mean over seeds.

    Args:
        runs: Of one optimizer on one task, at all its rates. Those that are missing do not count.

    Returns:
        The losses, rates ascending; NaN where a seed diverged or failed, or has not come yet.
    """
    ended = [run for run in runs if run.status != "missing"]
    seeds = {run.seed for run in ended}
    losses: dict[float | None, float] = {}
    for rate in sorted({run.rate for run in ended}, key=lambda rate: rate or 0.0):
        of_seed = {
            run.seed: run.final_loss
            for run in ended
            if run.rate == rate and run.status == "finished"
        }
        losses[rate] = fmean(of_seed.values()) if set(of_seed) == seeds else math.nan
    return losses


def at_best(runs: Sequence[AnyRun]) -> list[AnyRun]:
    """Returns the runs at the rate of the lowest final training loss.

    The test data choose nothing, and the rate has to get through with every seed.

    Args:
        runs: Of one optimizer on one task, at all its rates.

    Returns:
        A run for every seed; none if no rate got through.
    """
    losses = {rate: loss for rate, loss in final_losses(runs).items() if math.isfinite(loss)}
    if not losses:
        return []
    best = min(losses, key=losses.__getitem__)
    return [run for run in runs if run.rate == best and run.status == "finished"]
