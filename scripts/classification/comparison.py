"""Several seeds in one command: what is trained, and the table of what came of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats

from classification import session
from classification.objective import METRICS
from classification.options import Options

BASELINE, CONTINUED = "cross-entropy", "… continued"
BASELINE_OPTIMIZER, BASELINE_EPOCHS = "adamw", 100
CONFIDENCE = 0.95


class Results:
    """The last evaluation of every run, by role and seed.

    Args:
        chosen: All options.
    """

    def __init__(self, chosen: Options) -> None:
        self.chosen = chosen
        self.evaluations: dict[str, list[dict[str, float]]] = {}
        self.directories: dict[str, list[Path]] = {}

    def add(self, role: str, directory: Path, evaluation: dict[str, float]) -> None:
        """Notes a run that has ended."""
        self.evaluations.setdefault(role, []).append(evaluation)
        self.directories.setdefault(role, []).append(directory)

    def start(self, role: str) -> Path | None:
        """Returns the run that the next one of a role starts from; None is a new model."""
        if self.chosen.objective == "loss" or role == BASELINE:
            return None
        return self.directories[BASELINE][-1]

    def print_table(self) -> None:
        """Prints means over seeds, and differences paired by seed, with their intervals."""
        chosen, roles = self.chosen, list(self.evaluations)
        console, names = _console(), self._names()
        number = len(self.evaluations[roles[0]])
        last = chosen.seed + number - 1
        shown = f"seeds {chosen.seed} to {last}: test data, mean and 95 % t interval"
        if number == 1:
            shown = f"seed {last}: test data"
        console.print(
            f"\n[bold]{chosen.model} on {chosen.data}, imbalance {chosen.imbalance:g}, "
            f"{shown}[/bold]"
        )
        table = Table("", *(name.replace("_", " ") for name in names), box=box.SIMPLE)
        for role in roles:
            cells = (described(self.values(role, name), _limits(name)) for name in names)
            table.add_row(role, *cells)
        for role in roles[:-1]:
            differences = [self.values(roles[-1], name) - self.values(role, name) for name in names]
            cells = (described(values, (-1, 1), sign="+") for values in differences)  # of shares
            table.add_row(f"gain over {role}", *cells)
        console.print(table)
        self._print_directories(console)

    def print_unfinished(self, planned: int) -> None:
        """Prints which runs have ended well, and that the others are not made up for.

        Args:
            planned: Number of all runs.
        """
        console, finished = _console(), sum(map(len, self.directories.values()))
        console.print(
            f"\n[bold]comparison ended after {finished} of {planned} runs, without a table[/bold]"
        )
        self._print_directories(console)
        console.print("  --resume trains the run that it is given, and none of those to come;")
        console.print("  --seeds starts afresh, with all of them")

    def _print_directories(self, console: Console) -> None:
        width = max(map(len, self.directories), default=0)
        for role, directories in self.directories.items():
            paths = " ".join(map(str, directories))
            console.print(f"  {role:<{width}}  {paths}", markup=False)

    def values(self, role: str, name: str) -> np.ndarray:
        """Returns a figure of a role, one number a seed."""
        return np.array([evaluation[name] for evaluation in self.evaluations[role]])

    def _names(self) -> list[str]:
        """The figures of merit; that which is optimised comes first."""
        evaluation = next(iter(self.evaluations.values()))[0]
        aim = METRICS.get(self.chosen.objective)
        return sorted(evaluation.keys() - {"loss"}, key=lambda name: (name != aim, name))


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)


def planned(chosen: Options) -> list[tuple[str, Options]]:
    """Says what is to be trained.

    Args:
        chosen: All options.

    Returns:
        Role and options of every run, in the order in which they are trained. From where they
        start, :meth:`Results.start` says when it is known.
    """
    plan = []
    for seed in range(chosen.seed, chosen.seed + (chosen.seeds or 1)):
        run = replace(chosen, seed=seed, seeds=None)
        if chosen.objective == "loss":
            plan.append((chosen.optimizer, run))
            continue
        cross_entropy = replace(
            run,
            objective="loss",
            optimizer=chosen.baseline_optimizer or BASELINE_OPTIMIZER,
            lr=chosen.baseline_lr,
            option=(),
            draws=None,
        )
        epochs = chosen.baseline_epochs or BASELINE_EPOCHS
        before = {"epochs": epochs, "budget_seconds": None, "schedule": "constant"}
        plan.append((BASELINE, replace(cross_entropy, **before)))
        plan.append((CONTINUED, cross_entropy))
        plan.append((f"{chosen.objective} by {chosen.optimizer}", run))
    return plan


def check(plan: list[tuple[str, Options]]) -> None:
    """Builds every run without training it, since the last may be hours after the first.

    Args:
        plan: What :func:`planned` returned.

    Raises:
        ConfigurationError: If a run cannot be built.
    """
    samples, seed = None, None
    for _, run in plan:
        if samples is None or run.seed != seed:
            samples, seed = session.load(run), run.seed
        session.build(run, samples)


def described(values: np.ndarray, limits: tuple[float, float], sign: str = "") -> str:
    """Returns the mean with the t interval that holds it; of one value, the value.

    Args:
        values: One a seed.
        limits: Of the figure, at which the interval ends, too: it holds the mean as often.
        sign: "+" writes the sign of positive numbers, too.
    """
    mean = f"{values.mean():{sign}.3f}"
    if len(values) < 2:
        return mean
    margin = stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    low, high = np.clip([values.mean() - margin, values.mean() + margin], *limits)
    return f"{mean} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _limits(name: str) -> tuple[float, float]:
    """Returns the least and the greatest value of a figure of merit."""
    return (0.0, 1.0) if name in METRICS.values() else (0.0, np.inf)
