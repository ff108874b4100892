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

    def reaches(self, target: float) -> float:
        """Returns the first point at which the mean is not below a target; infinite if none is."""
        above = np.flatnonzero(self.mean >= target)
        return float(self.at[above[0]]) if len(above) else np.inf


def over_seeds(
    curves: Iterable[Curve],
    x: int,
    y: int,
    repetitions: int = REPETITIONS,
    logarithmic: bool = False,
) -> Band | None:
    """Averages curves where all of them have values.

    Args:
        curves: One a seed, rows of numbers.
        x: Column of the points.
        y: Column of the values; rows where it is not finite are left out.
        repetitions: Bootstrap resamples.
        logarithmic: Whether the points are spaced evenly in the logarithm; those at 0 are left out.

    Returns:
        The mean between the latest start and the earliest end, or None where there is nothing.
    """
    known = [_finite(curve, x, y) for curve in curves]
    if logarithmic:
        known = [curve[curve[:, 0] > 0] for curve in known]
    known = [curve for curve in known if len(curve)]
    if not known:
        return None
    start, end = max(c[0, 0] for c in known), min(c[-1, 0] for c in known)
    if start > end:  # a run ended before another had its first value
        return None
    spaced = np.geomspace if logarithmic else np.linspace
    at = np.unique(spaced(start, end, POINTS)) if start < end else np.array([start])
    values = np.array([np.interp(at, c[:, 0], c[:, 1]) for c in known])
    return Band(at, intervals.band(values, repetitions))


def _finite(curve: Curve, x: int, y: int) -> np.ndarray:
    points = np.array([(row[x], row[y]) for row in curve], dtype=float).reshape(-1, 2)
    return points[np.isfinite(points).all(axis=1)]


def first_at_most(curve: Sequence[Sequence[float]], x: int, y: int, target: float) -> float:
    """Returns where a curve first falls to a target; infinite if it does not."""
    return next((float(row[x]) for row in curve if row[y] <= target), np.inf)
