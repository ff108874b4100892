"""Draws which observation coordinates drive a trained agent's actions over an episode.

    python scripts/explain.py runs/trpo_HalfCheetah-v5_1
    python scripts/explain.py runs/trpo_CartPole-v1_1 --names x v angle "angular velocity"

Integrated gradients (captum) split every decision into a part for each coordinate: each component
of the mean action, or the log-probability of the chosen one where actions are discrete. Beside the
picture a .npz file holds all numbers, and a .csv file the ranking. Exit codes: 0 done, 1 the
environment gave numbers that are none, 2 there is nothing to explain.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from common import settings
from common.failures import Failure, configuration_errors, plain_warnings, training_errors
from common.progress import progress_bar
from explanation import files, plot
from explanation.attribution import Baseline, Explanation, explain
from explanation.episodes import Coordinates, Episodes, play
from rich.console import Console
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from training.replay import Agent, load

from npg.errors import ConfigurationError

INACCURATE = 0.01  # of the largest change


@dataclass
class Options(Agent):
    """Which agent to explain, and how."""

    episodes: int = 1
    """Episodes to play. The ranking is over all of them, the picture shows the first over time."""
    length: int | None = None
    """Steps after which an episode is broken off. None plays it to its end."""
    baseline: Baseline = "mean"
    """Observation that every decision is compared with: the mean of the episodes, or zeros, which
    is the mean of the training if observations are normalised."""
    steps: int = 64
    """Nodes of the integral. More make the gap smaller that is printed."""
    action: int | None = None
    """Component of the action whose attributions to draw with their sign. None draws the sum of all
    magnitudes."""
    top: int = 24
    """Coordinates to draw and print, the most important ones."""
    names: tuple[str, ...] | None = None
    """Names of the coordinates. None is o0, o1, …"""
    action_names: tuple[str, ...] | None = None
    """Names of the action's components. None is a0, a1, …"""
    output: Path | None = None
    """PNG file to write. None is explanation.png in the run's directory."""


def main(argv: Sequence[str]) -> int:
    """Explains as the command line says; returns the exit code."""
    plain_warnings()
    options = tyro.cli(Options, prog="explain.py", description=__doc__, args=argv)
    try:
        with configuration_errors():
            output = _checked(options)
            model, env, description = load(options)
            coordinates = Coordinates(env.observation_space, options.names)
        with training_errors(lambda: description):
            played, found = _explained(options, model, env, coordinates)
        with configuration_errors():
            _write(options, output, description, coordinates.names, played, found)
    except Failure as failure:
        return failure.report()
    _report(options, output, description, coordinates.names, found)
    return 0


def _explained(
    options: Options, model: OnPolicyAlgorithm, env: VecEnv, coordinates: Coordinates
) -> tuple[Episodes, Explanation]:
    with progress_bar("explaining", "{task.description}") as bar:
        task = bar.add_task("playing", total=options.episodes)
        played = play(
            model,
            env,
            coordinates,
            options.episodes,
            options.length,
            lambda number: bar.update(task, completed=number),
        )
        bar.reset(task, description="attributing")
        with configuration_errors():
            found = explain(
                model.policy,
                played,
                coordinates,
                options.baseline,
                options.steps,
                options.action_names,
                lambda done, of: bar.update(task, completed=done, total=of),
            )
            if options.action is not None and not 0 <= options.action < len(found.names):
                raise ConfigurationError(
                    f"action must be in [0, {len(found.names) - 1}], got {options.action}"
                )
    return played, found


def _write(
    options: Options,
    output: Path,
    description: str,
    names: list[str],
    played: Episodes,
    found: Explanation,
) -> None:
    start = "mean observation" if options.baseline == "mean" else "observation of zeros"
    plural = "" if options.episodes == 1 else "s"
    hidden = f"The first {options.top} of {len(names)} coordinates. "
    plot.draw(
        output,
        found,
        played,
        names,
        f"What drives the action: {description.partition(',')[0]}",
        f"Integrated gradients from the {start}, {options.steps} nodes; {options.episodes} "
        f"episode{plural}, {len(played.rewards):,} steps, return {played.rewards.sum():,.1f}. "
        f"{hidden if options.top < len(names) else ''}\n"
        "Parts of a decision sum to its difference from that at the start, up to "
        f"{found.gap():.1g}.",
        top=options.top,
        decision=options.action,
    )
    files.write_npz(output.with_suffix(".npz"), names, played, found)
    files.write_csv(output.with_suffix(".csv"), names, found)


def _report(
    options: Options, output: Path, description: str, names: list[str], found: Explanation
) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(description, style="bold", markup=False)
    console.print(files.table(names, found, options.top))
    console.print(
        f"  completeness   largest gap {found.gap():.2g}, "
        f"{found.relative_gap():.2g} of the largest change",
        markup=False,
    )
    if found.relative_gap() > INACCURATE:
        console.print("  warning: the integral is inaccurate: raise --steps", style="yellow")
    for suffix in (".png", ".npz", ".csv"):
        console.print(f"  {suffix[1:]}            {output.with_suffix(suffix)}", markup=False)


def _checked(options: Options) -> Path:
    settings.at_least(options, 1, "episodes", "steps", "top", "length")
    directory = options.path if options.path.is_dir() else options.path.parent
    output = options.output or directory / "explanation.png"
    if output.suffix != ".png":
        raise ConfigurationError(f"output must end in .png, got {output}")
    if not output.parent.is_dir():
        raise ConfigurationError(f"there is no directory {output.parent}")
    return output


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
