"""Final scores by name and task, and who is above whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from comparison import intervals, rates
from comparison.intervals import Aggregates, Improvement
from comparison.results import Results, Run


@dataclass(frozen=True)
class Scale:
    """Maps the scores of a task to 0 for `low` and 1 for `high`."""

    low: float
    high: float

    def normalised(self, scores: np.ndarray) -> np.ndarray:
        """Returns scores of different tasks in one unit; 1 for all where all are alike."""
        if self.high == self.low:
            return np.ones_like(scores)
        return (scores - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Contest:
    """Scores to compare.

    Attributes:
        names: Who takes part; the first is compared with every other in words.
        tasks: On what.
        runs: The runs that count, by name and task.
        scales: Of the tasks.
        sign: -1 where a smaller score is better.
        repetitions: Bootstrap resamples.
    """

    names: Sequence[str]
    tasks: Sequence[str]
    runs: Mapping[tuple[str, str], Sequence[Run]]
    scales: Mapping[str, Scale]
    sign: Mapping[str, int]
    repetitions: int
    _known: dict[tuple[str, ...], Improvement | None] = field(default_factory=dict)

    def scores(self, name: str, task: str) -> np.ndarray:
        """Returns the finite final scores of the runs."""
        scores = np.array([run.score for run in self.runs.get((name, task), ())], dtype=float)
        return scores[np.isfinite(scores)]

    def normalised(self, name: str) -> list[np.ndarray] | None:
        """Returns normalised scores by task; None where a task has none."""
        scores = [self.scales[t].normalised(self.scores(name, t)) for t in self.tasks]
        return scores if scores and all(len(s) for s in scores) else None

    def summary(self, name: str, task: str) -> tuple[Aggregates, Aggregates] | None:
        """Summarises scores as they are, and normalised ones."""
        scores = self.scores(name, task)
        if not len(scores):
            return None
        normalised = self.scales[task].normalised(scores)
        return (
            intervals.aggregates(scores, repetitions=self.repetitions),
            intervals.aggregates(normalised, repetitions=self.repetitions),
        )

    def improvement(self, first: str, second: str, *tasks: str) -> Improvement | None:
        """Compares two names on tasks; None where a side has no score on one of them."""
        key = (first, second, *tasks)
        if key not in self._known:
            sides = [
                self.sign[task] * self.scores(name, task)
                for task in tasks
                for name in (first, second)
            ]
            complete = all(len(side) for side in sides)
            self._known[key] = (
                intervals.improvement(*sides, repetitions=self.repetitions) if complete else None
            )
        return self._known[key]

    def pairs(self) -> list[tuple[str, str]]:
        """Returns every two names, the earlier one first."""
        return list(combinations(self.names, 2))


def of_agents(results: Results, repetitions: int) -> Contest:
    """Makes a contest of all finished runs, larger returns winning.

    A task's scale goes from what the policies earned at the start of their training to the best
    final score of a run.

    Args:
        results: Of agents.
        repetitions: Bootstrap resamples.

    Returns:
        The contest.
    """
    runs = {(n, t): results.select(n, t) for n in results.names for t in results.tasks}
    scales = {}
    for task in results.tasks:
        here = [run for name in results.names for run in runs[name, task]]
        final = np.array([run.score for run in here if np.isfinite(run.score)])
        starts = [_first(run) for run in here]
        starts = [start for start in starts if np.isfinite(start)]
        if not len(final):
            scales[task] = Scale(0.0, 1.0)
            continue
        start = float(np.median(starts)) if starts else np.inf
        best, worst = float(final.max()), float(final.min())
        scales[task] = Scale(start if start < best else worst, best)
    return Contest(
        results.names, results.tasks, runs, scales, dict.fromkeys(results.tasks, 1), repetitions
    )


def of_optimizers(results: Results, repetitions: int) -> Contest:
    """Makes a contest of the runs at each optimizer's best learning rate.

    The best rate is that of the lowest final loss on the training set.

    Args:
        results: Of optimizers.
        repetitions: Bootstrap resamples.

    Returns:
        The contest, on the metric.
    """
    runs, scales, sign = {}, {}, {}
    for task in results.tasks:
        here = [run for run in results.runs if run.finished and run.task == task]
        larger = all(run.larger_is_better for run in here)
        sign[task] = 1 if larger else -1
        for name in results.names:
            runs[name, task] = rates.at_best(results.planned(name, task))
        final = [r.score for n in results.names for r in runs[n, task] if np.isfinite(r.score)]
        if final:
            ends = (min(final), max(final)) if larger else (max(final), min(final))
            scales[task] = Scale(*ends)
        else:
            scales[task] = Scale(0.0, 1.0)
    return Contest(results.names, results.tasks, runs, scales, sign, repetitions)


def _first(run: Run) -> float:
    return next((value for *_, value in run.curve if np.isfinite(value)), np.nan)
