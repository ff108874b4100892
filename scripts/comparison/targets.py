"""What optimizers are timed to: a value of the test loss, or of the test metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from comparison.contest import Contest
from comparison.layout import number
from comparison.results import Run

LOSS = "loss"
COLUMNS = {LOSS: 2}  # of an evaluation; the metric's is the last one
METRIC = 3


@dataclass(frozen=True)
class Target:
    """A value to come to.

    Attributes:
        value: Infinite where nothing is to be come to.
        quantity: Of the test data: "loss", or the metric.
        larger_is_better: Whether the value is to be exceeded.
        asked: Whether the user has named it.
    """

    value: float
    quantity: str = LOSS
    larger_is_better: bool = False
    asked: bool = False

    def __str__(self) -> str:
        return f"{self.quantity.replace('_', ' ')} {number(self.value)}"

    def first(self, run: Run, x: int) -> float:
        """Returns where a run first comes to it: steps or seconds; infinite if it does not."""
        column = COLUMNS.get(self.quantity, METRIC)
        sign = -1 if self.larger_is_better else 1
        there = (row[x] for row in run.evaluations if sign * row[column] <= sign * self.value)
        return float(next(there, np.inf))

    def median(self, runs: Sequence[Run], x: int) -> float:
        """Returns where the median run first comes to it; infinite if it does not."""
        at = [self.first(run, x) for run in runs]
        return float(np.quantile(at, 0.5, method="higher")) if at else np.inf


def choose(contest: Contest, asked: Mapping[str, float]) -> dict[str, Target]:
    """Chooses what is timed on each task.

    Args:
        contest: Of the runs at the best rates.
        asked: Values by quantity, those of metrics first. A task whose metric is not there, nor
            "loss", takes the worst optimizer's median final test loss, which every optimizer that
            got through has reached.

    Returns:
        The target of each task, infinite where no run got through.
    """
    return {task: _of(task, contest, asked) for task in contest.tasks}


def _of(task: str, contest: Contest, asked: Mapping[str, float]) -> Target:
    groups = [runs for name in contest.names if (runs := contest.runs[name, task])]
    metric = groups[0][0].metric if groups else None
    if metric in asked:
        return Target(asked[metric], metric, contest.sign[task] > 0, asked=True)
    if LOSS in asked:
        return Target(asked[LOSS], asked=True)
    ends = [np.quantile([r.test_loss for r in runs], 0.5, method="higher") for runs in groups]
    return Target(float(max(filter(np.isfinite, ends), default=np.inf)))
