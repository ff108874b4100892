"""When one agent's learning curve is where another's ends."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from comparison import curves
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
    ours, theirs = ([run.curve for run in runs] for runs in (first, second))
    target = curves.end_of(theirs, RETURN)
    if not np.isfinite([target, curves.end_of(ours, RETURN)]).all():
        return None
    reached = [curves.crossing(side, RETURN, target) for side in (ours, theirs)]
    steps, seconds = zip(*reached, strict=True)
    return Race(target, steps, seconds)
