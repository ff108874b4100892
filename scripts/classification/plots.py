"""Loss and figure of merit of one run or several, against steps and against seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import picture
from common.picture import INK
from common.run_directory import read_progress
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from classification import options
from classification.options import Options
from npg.errors import ConfigurationError

COLOURS = ("#1f5fbf", "#d9730d", "#2f8f5b", "#b0307a", "#7a6a00", "#5a4fcf", "#6b7280")
FEW = 20  # evaluations, which are shown one by one


@dataclass(frozen=True)
class Curves:
    """What a run logged.

    Attributes:
        options: Of the run.
        columns: The columns of progress.csv, by name.
        metric: Name of the figure of merit.
    """

    options: Options
    columns: dict[str, np.ndarray]
    metric: str

    @property
    def label(self) -> str:
        """The optimizer, with what differs from its defaults."""
        rate = [] if self.options.lr is None else [f"lr={self.options.lr:g}"]
        return ", ".join([self.options.optimizer, *rate, *self.options.option])


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
    columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    metric = next(name for name in columns if name.startswith("test/") and name != "test/loss")
    return Curves(chosen, columns, metric)


def draw(directories: Sequence[Path], output: Path) -> None:
    """Draws runs on the same data and the same model, one colour an optimizer.

    Args:
        directories: Of the runs.
        output: PNG file to write.

    Raises:
        ConfigurationError: If there is no run, or they are of different data or models.
    """
    runs = [read(directory) for directory in directories]
    kinds = {(run.options.data, run.options.model) for run in runs}
    if len(kinds) != 1:
        found = ", ".join(f"{model} on {data}" for data, model in sorted(kinds)) or "none"
        raise ConfigurationError(f"a picture needs runs of one model on one data set, got {found}")
    labels = list(dict.fromkeys(run.label for run in runs))
    metric = runs[0].metric
    drawn = picture.figure(9, 6)
    panels = drawn.subplots(2, 2, sharex="col", sharey="row")
    times = {"time/step": "steps", "time/seconds": "seconds of training"}
    for row, name in zip(panels, ("test/loss", metric), strict=True):
        for axes, (x, x_label) in zip(row, times.items(), strict=True):
            described = name.removeprefix("test/").replace("_", " ")
            picture.style(axes, x_label, described)
            axes.label_outer()
            if x == "time/seconds":
                axes.xaxis.set_major_formatter(ScalarFormatter())  # seldom thousands
            if name != "test/accuracy":
                axes.set_yscale("log")
            for run in runs:
                _lines(axes, run, x, name, COLOURS[labels.index(run.label) % len(COLOURS)])
    _legend(panels[0, 0], labels)
    data, model = kinds.pop()
    panels[0, 0].set_title(f"{model} on {data}", loc="left", weight="bold", color=INK)
    picture.save(drawn, output)


def _lines(axes: Axes, run: Curves, x: str, name: str, colour: str) -> None:
    at = run.columns[x]
    marker = "o" if len(at) < FEW else None
    axes.plot(at, run.columns[name], color=colour, lw=1.8, marker=marker, ms=3)
    if name == "test/loss":
        axes.plot(at, run.columns["train/loss"], color=colour, lw=1, ls=":")


def _legend(axes: Axes, labels: Sequence[str]) -> None:
    for number, label in enumerate(labels):
        axes.plot([], [], color=COLOURS[number % len(COLOURS)], lw=1.8, label=label)
    axes.plot([], [], color=INK, lw=1, ls=":", label="training")
    axes.plot([], [], color=INK, lw=1.8, label="test")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
