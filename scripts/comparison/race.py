"""When one agent's learning curve is where another's ends."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from comparison import curves
from comparison.curves import Mean
from comparison.intervals import Interval
from comparison.results import Run

RETURN = 2  # column of an agent's curve


@dataclass(frozen=True)
class Race:
    """Two agents on their way to the score with which the second ends its training.

    Attributes:
        target: Where the second's mean learning curve ends.
        steps: At which the first's and the second's mean curves are first not below the target;
            infinite where the first's never is, the first point's where a curve begins there.
        seconds: The same on the clock.
    """

    target: float
    steps: tuple[float, float]
    seconds: tuple[float, float]


def quotient(ours: float, theirs: float) -> float:
    """Returns a ratio of two times; NaN where one is never, or the other at once."""
    return ours / theirs if np.isfinite([ours, theirs]).all() and theirs > 0 else np.nan


def race(first: Sequence[Run], second: Sequence[Run]) -> Race | None:
    """Finds when two agents reach the score that the second ends its training with.

    Curves are interquartile means over seeds of the return in training, between recorded points as
    if on a straight line, so that budgets and the distance of the points do not matter.

    Args:
        first: Finished runs of one agent.
        second: Finished runs of another, on the same task.

    Returns:
        The race, or None where a side has no curve.
    """
    means = [curves.mean_of([run.curve for run in runs], RETURN) for runs in (first, second)]
    ours, theirs = means
    return None if ours is None or theirs is None else _raced(ours, theirs)


def quotient_interval(
    first: Sequence[Run], second: Sequence[Run], seconds: bool, repetitions: int
) -> Interval:
    """Returns the ratio of the two times of a race, with its interval over seeds.

    Args:
        first: As in :func:`race`, which has a result for them.
        second: Likewise.
        seconds: Whether the times are seconds; else steps.
        repetitions: Bootstrap resamples of either side's runs, and with them of the target.

    Returns:
        The ratio, infinite where the first agent is never there, and quantiles of the resamples';
        NaN for those of single runs.
    """
    sides = [
        curves.on_common_steps([run.curve for run in runs], RETURN) for runs in (first, second)
    ]

    def ratio(ours: Mean, theirs: Mean) -> float:
        found = _raced(ours, theirs)
        mine, others = found.seconds if seconds else found.steps
        return mine / others if others > 0 else np.inf

    value = ratio(*(side.of(np.arange(side.count)) for side in sides))
    if min(side.count for side in sides) < 2:
        return Interval(value, np.nan, np.nan)
    draw = np.random.default_rng(0)
    resampled = [
        ratio(*(side.of(draw.integers(side.count, size=side.count)) for side in sides))
        for _ in range(repetitions)
    ]
    # Quantiles that are among them: between a number and infinity there is nothing.
    return Interval(value, *np.quantile(resampled, [0.025, 0.975], method="inverted_cdf"))


def _raced(ours: Mean, theirs: Mean) -> Race:
    target = float(theirs.values[-1])
    steps, seconds = zip(*(side.crossing(target) for side in (ours, theirs)), strict=True)
    return Race(target, steps, seconds)
