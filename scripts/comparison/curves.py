"""Curves of several seeds brought to common points."""

from collections.abc import Iterable
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

    def reaches(self, target: float) -> float:
        """Returns the first point at which the mean is not below a target; infinite if none is."""
        above = np.flatnonzero(self.mean >= target)
        return float(self.at[above[0]]) if len(above) else np.inf


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
    known = [_finite(curve, y) for curve in curves]
    known = [curve for curve in known if len(curve)]
    if not known:
        return None
    start, end = max(c[0, STEPS] for c in known), min(c[-1, STEPS] for c in known)
    if start > end:  # a run ended before another had its first value
        return None
    at = np.linspace(start, end, POINTS if start < end else 1)
    values = np.array([np.interp(at, c[:, STEPS], c[:, y]) for c in known])
    if seconds:
        clocks = np.array([np.interp(at, c[:, STEPS], c[:, SECONDS]) for c in known])
        at = intervals.mean_of_middle(clocks)
    return Band(at, intervals.band(values, repetitions))


def _finite(curve: Curve, y: int) -> np.ndarray:
    points = [row for row in curve if row[y] is not None and np.isfinite(row[y])]
    return np.array(points, dtype=float)
