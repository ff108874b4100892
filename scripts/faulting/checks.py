"""What must hold of a run's directory after any fault, and of the run that goes on from it."""

import csv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agents import TRPO
from faulting.trained import unreadable
from npg.errors import CheckpointError


def after_fault(run: Path) -> list[str]:
    """Looks for what is lost, torn or left lying about.

    Args:
        run: Directory of the run, whose process has ended.

    Returns:
        What is wrong, in words; empty if nothing is.
    """
    wrong = [f"{name} cannot be read" for name in unreadable(run)]
    wrong += [f"{path.name} was left behind" for path in run.rglob("*.tmp")]
    if not (run / "config.yml").is_file():
        wrong.append("config.yml is gone")
    for read in (last_steps, progress, evaluations):
        try:
            read(run)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            wrong.append(str(error))
    return wrong


def last_steps(run: Path) -> int:
    """Steps of the last checkpoint.

    Raises:
        CheckpointError: If it cannot be loaded.
    """
    return TRPO.load(run / "last_model.zip", device="cpu").num_timesteps


def progress(run: Path) -> list[int]:
    """Steps at which something was logged.

    Raises:
        ValueError: If a row of progress.csv is not whole, or they are out of order.
    """
    with open(run / "progress.csv", newline="") as file:
        names, *rows = csv.reader(file)
    if any(len(row) != len(names) for row in rows):
        raise ValueError("a row of progress.csv is torn")
    steps = [int(row[names.index("time/total_timesteps")]) for row in rows]
    if steps != sorted(steps):
        raise ValueError("the rows of progress.csv are out of order")
    return steps


def evaluations(run: Path) -> list[int]:
    """Steps at which there was an evaluation; none if there is no file yet.

    Raises:
        ValueError: If evaluations.npz is torn.
    """
    file = run / "evaluations.npz"
    if not file.is_file():
        return []
    with np.load(file) as stored:
        if len({len(stored[name]) for name in stored.files}) != 1:
            raise ValueError("evaluations.npz is torn")
        return list(stored["timesteps"])


def goes_on(before: Sequence[int], run: Path, total: int) -> list[str]:
    """Looks at a run that was continued to its end.

    Args:
        before: Steps that were logged up to the checkpoint it went on from.
        run: Its directory.
        total: Steps that it was to reach.

    Returns:
        What is wrong, in words; empty if nothing is.
    """
    wrong = after_fault(run)
    if wrong:
        return wrong
    try:
        reached = last_steps(run)
    except CheckpointError as error:
        return [str(error)]
    if reached < total:
        wrong.append(f"the continued run ended at {reached:,} of {total:,} steps")
    if progress(run)[: len(before)] != list(before):
        wrong.append("the continued run has lost rows of progress.csv")
    return wrong
