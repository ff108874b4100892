"""Point estimates over seeds with 95 % stratified-bootstrap intervals, as rliable defines them.

Resampling is over seeds, within each task; the tasks are fixed. All resamples are drawn and
evaluated at once: rliable loops over them, and a page needs hundreds of intervals. The tests hold
estimates and intervals against rliable's and SciPy's.

Reference: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice,
NeurIPS 2021.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

REPETITIONS = 2_000
LEVEL = 0.05  # of the rank test
ARRANGEMENTS = 10_000  # of scores over two sides; where there are more, as many are drawn


@dataclass(frozen=True)
class Interval:
    """A point estimate and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Aggregates:
    """What describes scores: interquartile mean, median and optimality gap."""

    iqm: Interval
    median: Interval
    gap: Interval


@dataclass(frozen=True)
class Improvement:
    """How surely one side is above another.

    Attributes:
        probability: That a run of the first is above a run of the second, equal ones count half.
        p_value: Of the two-sided Mann–Whitney test by permutations within each task, which holds
            for few runs and for ties; bootstrap intervals of a few runs are too narrow, two of each
            side would always decide.
    """

    probability: Interval
    p_value: float

    @property
    def verdict(self) -> str:
        """One of ahead, behind, undecided."""
        if self.p_value >= LEVEL:
            return "undecided"
        # Single runs have no interval: neither end is then above or below anything.
        if self.probability.low > 0.5:
            return "ahead"
        return "behind" if self.probability.high < 0.5 else "undecided"


def aggregates(*tasks: np.ndarray, repetitions: int = REPETITIONS) -> Aggregates:
    """Summarises scores of one task or several.

    Args:
        tasks: Scores of the runs, normalised ones where there are several tasks. The numbers of
            runs may differ.
        repetitions: Bootstrap resamples.

    Returns:
        The interquartile mean of all runs; the median over runs of one task, over the means of
        several; how far the runs stay below 1 on average, what exceeds 1 not counted.
    """
    estimates = _bootstrap(_described, tasks, repetitions)
    return Aggregates(*(Interval(*row) for row in estimates))


def mean_of_middle(scores: np.ndarray, axis: int = 0) -> np.ndarray:
    """Returns the interquartile mean over an axis.

    A quarter of the scores, rounded down, is cut off at either end: of three nothing, of five one.
    """
    cut = scores.shape[axis] // 4
    middle = np.arange(cut, scores.shape[axis] - cut)
    return np.sort(scores, axis=axis).take(middle, axis=axis).mean(axis=axis)


def interquartile_mean(scores: np.ndarray, repetitions: int = REPETITIONS) -> Interval:
    """Returns the interquartile mean of the runs of one task."""
    estimate = _bootstrap(lambda x: mean_of_middle(x, 1)[:, None], [scores], repetitions)
    return Interval(*estimate[0])


def improvement(*pairs: np.ndarray, repetitions: int = REPETITIONS) -> Improvement:
    """Compares two sides.

    Args:
        pairs: Scores of the first and of the second on one task, then those on the next, and so
            on; larger is better.
        repetitions: Bootstrap resamples.

    Returns:
        The probability of improvement, averaged over tasks.
    """
    estimate = _bootstrap(_above, pairs, repetitions)
    return Improvement(Interval(*estimate[0]), _p_value(estimate[0, 0], pairs))


def _p_value(probability: float, pairs: Sequence[np.ndarray]) -> float:
    """That both sides of every task come from one distribution, by permutations within tasks."""
    nulls = [_rearranged(x, y) for x, y in zip(pairs[::2], pairs[1::2], strict=True)]
    every = len(nulls) == 1 and len(nulls[0]) < ARRANGEMENTS
    draw = np.random.default_rng(0)
    null = nulls[0] if every else np.mean([draw.choice(n, ARRANGEMENTS) for n in nulls], axis=0)
    found = 0 if every else 1  # what was found is one arrangement more where they are drawn
    tails = [np.sum(null <= probability + 1e-9), np.sum(null >= probability - 1e-9)]
    return float(min(1.0, 2 * (min(tails) + found) / (len(null) + found)))


def _rearranged(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Chances that the first is above, for scores that are spread over the sides in all ways."""
    ranks = rankdata(np.concatenate([x, y]))  # equal scores share theirs
    if math.comb(len(ranks), len(x)) < ARRANGEMENTS:
        chosen = ranks[np.array(list(combinations(range(len(ranks)), len(x))))]
    else:
        draw = np.random.default_rng(1)
        chosen = draw.permuted(np.tile(ranks, (ARRANGEMENTS, 1)), axis=1)[:, : len(x)]
    wins = chosen.sum(axis=1) - len(x) * (len(x) + 1) / 2
    return wins / (len(x) * len(y))


def band(curves: np.ndarray, repetitions: int = REPETITIONS) -> np.ndarray:
    """Computes the interquartile mean of curves with a pointwise interval.

    Args:
        curves: One row a run, one column a point.
        repetitions: Bootstrap resamples.

    Returns:
        One row a point: mean, lower end, upper end.
    """
    return _bootstrap(lambda x: mean_of_middle(x, 1), [curves], repetitions)


def profile(
    tasks: Sequence[np.ndarray], thresholds: np.ndarray, repetitions: int = REPETITIONS
) -> np.ndarray:
    """Computes the performance profile: which share of the runs scores above each threshold.

    Args:
        tasks: Normalised scores of the runs of each task.
        thresholds: At which to count.
        repetitions: Bootstrap resamples.

    Returns:
        One row a threshold: share, lower end, upper end.
    """

    def shares(*resampled: np.ndarray) -> np.ndarray:
        scores = np.concatenate(resampled, axis=1)
        return np.column_stack([(scores > threshold).mean(axis=1) for threshold in thresholds])

    return _bootstrap(shares, tasks, repetitions)


# Functions of resampled scores: axis 0 is the resample, axis 1 the run; a column an estimate.


def _described(*tasks: np.ndarray) -> np.ndarray:
    scores = np.concatenate(tasks, axis=1)
    centres = tasks[0] if len(tasks) == 1 else np.column_stack([task.mean(1) for task in tasks])
    gap = 1 - np.minimum(scores, 1).mean(axis=1)
    return np.column_stack([mean_of_middle(scores, 1), np.median(centres, axis=1), gap])


def _above(*pairs: np.ndarray) -> np.ndarray:
    sides = zip(pairs[::2], pairs[1::2], strict=True)
    wins = [np.sign(x[:, :, None] - y[:, None]).mean(axis=(1, 2)) for x, y in sides]
    return (np.mean(wins, axis=0)[:, None] + 1) / 2


def _bootstrap(
    function: Callable[..., np.ndarray], tasks: Sequence[np.ndarray], repetitions: int
) -> np.ndarray:
    """One row an estimate: value, lower end, upper end; single runs have no interval."""
    value = function(*(task[None] for task in tasks))[0]
    if max(map(len, tasks)) < 2:
        return np.column_stack([value, np.full((len(value), 2), np.nan)])
    draw = np.random.default_rng(0)
    chosen = (draw.integers(len(task), size=(repetitions, len(task))) for task in tasks)
    resampled = [task[indices] for task, indices in zip(tasks, chosen, strict=True)]
    ends = np.quantile(function(*resampled), [0.025, 0.975], axis=0)
    return np.column_stack([value, *ends])
