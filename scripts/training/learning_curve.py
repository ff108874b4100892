"""The picture of a run: return against environment steps."""

from pathlib import Path

from common import picture
from common.files import tolerated
from common.picture import BLUE, GREY, INK
from matplotlib.figure import Figure

from training.run_directory import PLOT, read_evaluations, read_progress


def draw(directory: Path, agent: str, env: str, seed: int) -> None:
    """Draws learning_curve.png from progress.csv and evaluations.npz, if it can be written.

    Args:
        directory: Of the run.
        agent: For the title.
        env: For the title.
        seed: For the title.
    """
    with tolerated(directory / PLOT):
        picture.save(_drawn(directory, agent, env, seed), directory / PLOT)


def _drawn(directory: Path, agent: str, env: str, seed: int) -> Figure:
    figure = picture.figure(8, 4.5)
    axes = figure.add_subplot()
    picture.style(axes, "environment steps", "return of an episode")

    steps, returns = _training_returns(directory)
    if steps:
        axes.plot(steps, returns, color=GREY, lw=1.5, label="training, last 100 episodes")
    evaluations = read_evaluations(directory)
    subtitle = f"seed {seed}"
    if evaluations:
        at, results = evaluations["timesteps"], evaluations["results"]
        mean, deviation = results.mean(axis=1), results.std(axis=1)
        label = f"evaluation, {results.shape[1]} episodes, mean ± std"
        axes.fill_between(at, mean - deviation, mean + deviation, color=BLUE, alpha=0.15, lw=0)
        axes.plot(at, mean, color=BLUE, lw=2, marker="o", ms=3.5, label=label)
        axes.annotate(
            f"{mean[-1]:,.4g}",
            (at[-1], mean[-1]),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=BLUE,
            weight="bold",
        )
        subtitle += f" · evaluation after {at[-1]:,} steps: {mean[-1]:,.1f} ± {deviation[-1]:,.1f}"
    axes.set_title(f"{agent.upper()} on {env}", loc="left", weight="bold", pad=24)
    axes.text(0, 1.035, subtitle, transform=axes.transAxes, color=INK, size=9.5)
    if axes.has_data():
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)

    return figure


def _training_returns(directory: Path) -> tuple[list[int], list[float]]:
    rows = [row for row in read_progress(directory) if row.get("rollout/ep_rew_mean")]
    return (
        [int(row["time/total_timesteps"]) for row in rows],
        [float(row["rollout/ep_rew_mean"]) for row in rows],
    )
