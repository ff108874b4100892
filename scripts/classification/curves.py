"""What runs logged, and the mean of those that differ in the seed only."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
from common.run_directory import read_progress

from classification import options
from classification.options import Options
from npg.errors import ConfigurationError

STEP = "time/step"


@dataclass(frozen=True)
class Curves:
    """What a run logged.

    Attributes:
        options: Of the run.
        columns: The columns of progress.csv, by name.
    """

    options: Options
    columns: dict[str, np.ndarray]

    @property
    def metric(self) -> str:
        """Name of the column with the figure of merit."""
        if self.options.objective == "f1":
            return "test/macro_f1"
        known = ("test/accuracy", "test/reconstruction_error")
        return next(name for name in known if name in self.columns)

    @property
    def label(self) -> str:
        """The optimizer, with what differs from its defaults."""
        rate = [] if self.options.lr is None else [f"lr={self.options.lr:g}"]
        aim = [] if self.options.objective == "loss" else [self.options.objective]
        return ", ".join([self.options.optimizer, *aim, *rate, *self.options.option])


def read(directory: Path) -> Curves:
    """Reads the configuration and the logs of a run.

    Args:
        directory: Of the run.

    Returns:
        Its curves.

    Raises:
        ConfigurationError: If it is none, or has not evaluated anything yet.
    """
    chosen = options.read(directory)
    rows = read_progress(directory)
    if not rows:
        raise ConfigurationError(f"the run in {directory} has no evaluation yet")
    return Curves(chosen, {name: np.array([float(row[name]) for row in rows]) for name in rows[0]})


@dataclass(frozen=True)
class Seeds:
    """Runs that only the seed tells apart, at the steps where all of them were evaluated.

    Attributes:
        label: What they have in common.
        columns: [runs, steps], by name.
    """

    label: str
    columns: dict[str, np.ndarray]

    def mean(self, name: str) -> np.ndarray:
        """Returns a column's mean over the runs."""
        return self.columns[name].mean(0)


def by_label(runs: Sequence[Curves]) -> list[Seeds]:
    """Puts runs together that only the seed tells apart.

    Args:
        runs: At least one.

    Returns:
        The groups, in the order of their first runs.

    Raises:
        ConfigurationError: If the runs of a group were never evaluated at the same step.
    """
    groups: dict[str, list[Curves]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return [_together(label, members) for label, members in groups.items()]


def _together(label: str, runs: Sequence[Curves]) -> Seeds:
    steps = reduce(np.intersect1d, [run.columns[STEP] for run in runs])
    if not len(steps):
        raise ConfigurationError(f"the runs of {label} were never evaluated at the same step")
    rows = [np.isin(run.columns[STEP], steps) for run in runs]
    return Seeds(
        label,
        {
            name: np.stack([run.columns[name][kept] for run, kept in zip(runs, rows, strict=True)])
            for name in runs[0].columns
        },
    )
