"""The picture of a run: return against environment steps."""

import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from training.run_directory import PLOT, read_evaluations, read_progress

TRAINING, EVALUATION, INK, FAINT = "#9aa5b1", "#1f5fbf", "#1f2933", "#e4e7eb"


def draw(directory: Path, agent: str, env: str, seed: int) -> None:
    """Draws learning_curve.png from progress.csv and evaluations.npz.

    Args:
        directory: Of the run.
        agent: For the title.
        env: For the title.
        seed: For the title.
    """
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _style(axes)

    steps, returns = _training_returns(directory)
    if steps:
        axes.plot(steps, returns, color=TRAINING, lw=1.5, label="training, last 100 episodes")
    evaluations = read_evaluations(directory)
    subtitle = f"seed {seed}"
    if evaluations:
        at, results = evaluations["timesteps"], evaluations["results"]
        mean, deviation = results.mean(axis=1), results.std(axis=1)
        label = f"evaluation, {results.shape[1]} episodes, mean ± std"
        axes.fill_between(
            at, mean - deviation, mean + deviation, color=EVALUATION, alpha=0.15, lw=0
        )
        axes.plot(at, mean, color=EVALUATION, lw=2, marker="o", ms=3.5, label=label)
        axes.annotate(
            f"{mean[-1]:,.4g}",
            (at[-1], mean[-1]),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=EVALUATION,
            weight="bold",
        )
        subtitle += f" · evaluation after {at[-1]:,} steps: {mean[-1]:,.1f} ± {deviation[-1]:,.1f}"
    axes.set_title(f"{agent.upper()} on {env}", loc="left", weight="bold", pad=24)
    axes.text(0, 1.035, subtitle, transform=axes.transAxes, color=INK, size=9.5)
    if axes.has_data():
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)

    temporary = directory / f".{PLOT}.{os.getpid()}.tmp"
    figure.savefig(temporary, format="png")
    os.replace(temporary, directory / PLOT)


def _training_returns(directory: Path) -> tuple[list[int], list[float]]:
    rows = [row for row in read_progress(directory) if row.get("rollout/ep_rew_mean")]
    return (
        [int(row["time/total_timesteps"]) for row in rows],
        [float(row["rollout/ep_rew_mean"]) for row in rows],
    )


def _style(axes: Axes) -> None:
    axes.set_xlabel("environment steps", color=INK)
    axes.set_ylabel("return of an episode", color=INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color=FAINT, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(TRAINING)
    axes.tick_params(color=TRAINING, labelcolor=INK)
    axes.margins(x=0.03)
