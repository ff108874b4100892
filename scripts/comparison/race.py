"""When one agent's learning curve is where another's ends."""

from collections.abc import Sequence
from dataclasses import dataclass

from comparison import curves
from comparison.results import Run


@dataclass(frozen=True)
class Race:
    """Two agents on their way to the score with which the second ends its training.

    Attributes:
        target: Where the second's mean learning curve ends.
        steps: At which the first's and the second's mean curves are first not below the target;
            infinite where the first's never is.
        seconds: The same on the clock.
    """

    target: float
    steps: tuple[float, float]
    seconds: tuple[float, float]

    @property
    def ratio(self) -> float:
        """The first's seconds over the second's."""
        return self.seconds[0] / self.seconds[1]


def race(first: Sequence[Run], second: Sequence[Run]) -> Race | None:
    """Finds when two agents reach the score that the second ends its training with.

    Curves are interquartile means over seeds of the return in training.

    Args:
        first: Finished runs of one agent.
        second: Finished runs of another, on the same task.

    Returns:
        The race, or None where a side has no curve.
    """
    sides = [[run.curve for run in runs] for runs in (first, second)]
    by_steps, by_seconds = (
        [curves.over_seeds(side, 2, seconds, repetitions=2) for side in sides]
        for seconds in (False, True)
    )
    ours, theirs = by_steps
    if ours is None or theirs is None:
        return None
    target = float(theirs.mean[-1])
    steps, seconds = ((a.reaches(target), b.reaches(target)) for a, b in (by_steps, by_seconds))
    return Race(target, steps, seconds)
