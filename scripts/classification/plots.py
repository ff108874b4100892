"""Loss and figure of merit of one run or several, against steps and against seconds."""

from collections.abc import Sequence
from pathlib import Path

from common import picture
from common.picture import COLOURS, INK
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from classification import curves
from classification.curves import STEP, Seeds
from npg.errors import ConfigurationError

FEW = 20  # evaluations, which are shown one by one


def draw(directories: Sequence[Path], output: Path) -> None:
    """Draws runs on the same data and the same model, one colour an optimizer.

    Runs that only the seed tells apart become their mean, and the range around it.

    Args:
        directories: Of the runs.
        output: PNG file to write.

    Raises:
        ConfigurationError: If there is no run, or they are of different data or models.
    """
    runs = [curves.read(directory) for directory in directories]
    kinds = {(run.options.data, run.options.model) for run in runs}
    if len(kinds) != 1:
        found = ", ".join(f"{model} on {data}" for data, model in sorted(kinds)) or "none"
        raise ConfigurationError(f"a picture needs runs of one model on one data set, got {found}")
    groups = curves.by_label(runs)
    drawn = picture.figure(9, 6)
    panels = drawn.subplots(2, 2, sharex="col", sharey="row")
    times = {STEP: "steps", "time/seconds": "seconds of training"}
    for row, name in zip(panels, ("test/loss", runs[0].metric), strict=True):
        for axes, (x, x_label) in zip(row, times.items(), strict=True):
            described = name.removeprefix("test/").replace("_", " ")
            picture.style(axes, x_label, described)
            axes.label_outer()
            if x != STEP:
                if len(groups) > 1:  # a step of one may cost many of another
                    axes.set_xscale("log")
                axes.xaxis.set_major_formatter(ScalarFormatter())  # seldom thousands
            if name != "test/accuracy":
                axes.set_yscale("log")
            for group, colour in zip(groups, COLOURS * len(groups), strict=False):
                _lines(axes, group, x, name, colour)
    _legend(panels[1, 0], [group.label for group in groups])
    data, model = kinds.pop()
    numbers = {len(group.columns[STEP]) for group in groups}
    number = f"{max(numbers)} " if len(numbers) == 1 else ""
    seeds = f", mean and range over {number}seeds" if max(numbers) > 1 else ""
    panels[0, 0].set_title(f"{model} on {data}{seeds}", loc="left", weight="bold", color=INK)
    picture.save(drawn, output)


def _lines(axes: Axes, group: Seeds, x: str, name: str, colour: str) -> None:
    at, values = group.mean(x), group.columns[name]
    marker = "o" if len(at) < FEW else None
    axes.plot(at, group.mean(name), color=colour, lw=1.8, marker=marker, ms=3)
    axes.fill_between(at, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
    if name == "test/loss":
        axes.plot(at, group.mean("train/loss"), color=colour, lw=1, ls=":")


def _legend(axes: Axes, labels: Sequence[str]) -> None:
    for label, colour in zip(labels, COLOURS * len(labels), strict=False):
        axes.plot([], [], color=colour, lw=1.8, label=label)
    axes.plot([], [], color=INK, lw=1, ls=":", label="training")
    axes.plot([], [], color=INK, lw=1.8, label="test")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")
