"""Curves of several seeds brought to common points."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from comparison import intervals
from comparison.intervals import REPETITIONS
from comparison.results import Curve

STEPS, SECONDS = 0, 1
POINTS = 80


@dataclass(frozen=True)
class Band:
    """The interquartile mean of curves over seeds.

    Attributes:
        at: Points, ascending.
        estimate: One row a point: mean, lower end and upper end of its interval.
    """

    at: np.ndarray
    estimate: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The middle line."""
        return self.estimate[:, 0]


def over_seeds(
    curves: Iterable[Curve], y: int, seconds: bool = False, repetitions: int = REPETITIONS
) -> Band | None:
    """Averages curves at equal steps, where all of them have values.

    Args:
        curves: One a seed, rows of numbers that begin with the step.
        y: Column of the values; rows where it is not finite are left out.
        seconds: Whether the points are seconds, those that a step is reached at, averaged like the
            values: seeds that ran slower are then no shorter curves.
        repetitions: Bootstrap resamples.

    Returns:
        The mean between the latest start and the earliest end, or None where there is nothing.
    """
    known = _known(curves, y)
    recorded = _recorded(known)
    if not len(recorded):  # or a run ended before another had its first value
        return None
    start, end = recorded[0], recorded[-1]
    at = np.linspace(start, end, POINTS if start < end else 1)
    values = np.array([np.interp(at, c[:, STEPS], c[:, y]) for c in known])
    if seconds:
        reached = [np.interp(at, c[:, STEPS], c[:, SECONDS]) for c in known]
        at = intervals.mean_of_middle(np.array(reached))
    return Band(at, intervals.band(values, repetitions))


@dataclass(frozen=True)
class Mean:
    """The interquartile mean of curves over seeds, at all steps at which one has a value.

    Attributes:
        steps: Ascending.
        seconds: When they were reached.
        values: Of the curves.
    """

    steps: np.ndarray
    seconds: np.ndarray
    values: np.ndarray

    def crossing(self, target: float) -> tuple[float, float]:
        """Finds when the mean is first not below a target.

        Args:
            target: To be reached.

        Returns:
            Steps, and seconds: between two points as if on a straight line, at the first point if
            the curve begins there; infinite if it is never reached.
        """
        above = np.flatnonzero(self.values >= target)
        if not len(above):
            return np.inf, np.inf
        around = slice(max(above[0] - 1, 0), above[0] + 1)
        steps = float(np.interp(target, self.values[around], self.steps[around]))
        return steps, float(np.interp(steps, self.steps, self.seconds))


@dataclass(frozen=True)
class CommonSteps:
    """Curves of seeds at common steps; one row a seed in `seconds` and `values`."""

    steps: np.ndarray
    seconds: np.ndarray
    values: np.ndarray

    @property
    def count(self) -> int:
        """How many curves there are."""
        return len(self.values)

    def of(self, seeds: np.ndarray) -> Mean:
        """Averages some of them, which may come more than once."""
        means = (intervals.mean_of_middle(rows[seeds]) for rows in (self.seconds, self.values))
        return Mean(self.steps, *means)


def on_common_steps(curves: Iterable[Curve], y: int) -> CommonSteps:
    """Brings curves to all steps at which one has a value, where every one has begun, none ended.

    Args:
        curves: One a seed.
        y: Column of the values.

    Returns:
        The curves; without steps where there are none.
    """
    known = _known(curves, y)
    at = _recorded(known)
    if not len(at):
        return CommonSteps(at, np.empty((0, 0)), np.empty((0, 0)))
    seconds, values = (
        np.array([np.interp(at, c[:, STEPS], c[:, x]) for c in known]) for x in (SECONDS, y)
    )
    return CommonSteps(at, seconds, values)


def mean_of(curves: Iterable[Curve], y: int) -> Mean | None:
    """Returns the mean of curves of all seeds; None if they have no values at common steps."""
    common = on_common_steps(curves, y)
    return common.of(np.arange(common.count)) if common.count else None


def _recorded(known: Sequence[np.ndarray]) -> np.ndarray:
    """All steps at which a curve has a value, where every curve has been begun and none ended."""
    if not known:
        return np.empty(0)
    start, end = max(c[0, STEPS] for c in known), min(c[-1, STEPS] for c in known)
    at = np.unique(np.concatenate([c[:, STEPS] for c in known]))
    return at[(start <= at) & (at <= end)]


def _known(curves: Iterable[Curve], y: int) -> list[np.ndarray]:
    finite = [_finite(curve, y) for curve in curves]
    return [curve for curve in finite if len(curve)]


def _finite(curve: Curve, y: int) -> np.ndarray:
    points = [row for row in curve if row[y] is not None and np.isfinite(row[y])]
    return np.array(points, dtype=float)
