"""A long training, and whether its memory grows."""

import csv
import subprocess
import time
from pathlib import Path

import numpy as np
from common import memory
from common.run_directory import PROGRESS, read_progress
from rich.console import Console
from rich.table import Table

from faulting.report import Row
from faulting.trained import run_in, start

LIMIT = 1.0  # MB per PER steps
PER = 100_000
WARM_UP = 0.2  # of the steps: caches fill, episodes grow longer
SECONDS = 0.25  # between looks
ENVIRONMENTS, ROLLOUT = 8, 2_048

Sample = tuple[int, float]


def rows(place: Path, steps: int) -> list[Row]:
    """Trains TRPO on CartPole, evaluated, saved and logged as any run is.

    Args:
        place: Where the run's directory is made; memory.csv is left in that.
        steps: Of the training.

    Returns:
        One row.
    """
    process = start(
        *("trpo", "--env", "CartPole-v1", "--backend", "gymnasium", "--track-dir", place),
        *("--num-envs", ENVIRONMENTS, "--n-steps", ROLLOUT // ENVIRONMENTS),
        *("--total-timesteps", steps),
    )
    samples = _watched(process, place)
    output, _ = process.communicate()
    run = run_in(place)
    fault = f"{steps:,} steps of training"
    promised = f"memory grows by less than {LIMIT:g} MB in {PER:,} steps"
    if process.returncode or run is None:
        return [Row(fault, promised, output[-300:], False)]
    _write(run / "memory.csv", samples)
    _show(samples, steps)
    found = slope(samples, steps)
    seen = f"{found:+.3f} MB in {PER:,} steps, after the first {WARM_UP * steps:,.0f}"
    return [Row(fault, promised, seen, found < LIMIT)]


def slope(samples: list[Sample], steps: int) -> float:
    """MB per 100,000 steps, by least squares after the warm-up.

    Args:
        samples: Steps, and MB that were resident then.
        steps: Of the whole training.

    Raises:
        ValueError: If there are too few samples to say.
    """
    at, megabytes = np.array([one for one in samples if one[0] >= WARM_UP * steps]).T.reshape(2, -1)
    if len(at) < 3:
        raise ValueError(f"{len(at)} samples of memory say nothing: take more --steps")
    return float(np.polyfit(at / PER, megabytes, 1)[0])


def _watched(process: subprocess.Popen[str], place: Path) -> list[Sample]:
    """Looks at the memory whenever something was logged."""
    samples: list[Sample] = []
    while process.poll() is None:
        done = _steps(place)
        if done and (not samples or done > samples[-1][0]):
            try:
                samples.append((done, memory.resident(process.pid)))
            except (OSError, TypeError):  # it has just ended
                break
        time.sleep(SECONDS)
    return samples


def _steps(place: Path) -> int:
    """The last step that was logged."""
    run = run_in(place)
    if run is None or not (run / PROGRESS).exists():
        return 0
    logged = read_progress(run)
    return int(logged[-1].get("time/total_timesteps") or 0) if logged else 0


def _write(path: Path, samples: list[Sample]) -> None:
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("steps", "resident_megabytes"))
        table.writerows(samples)


def _show(samples: list[Sample], steps: int) -> None:
    """Prints about ten of them."""
    table = Table("steps", "resident MB")
    wanted = np.linspace(0, steps, 11)
    for at in sorted({min(samples, key=lambda one: abs(one[0] - want)) for want in wanted}):
        table.add_row(f"{at[0]:,}", f"{at[1]:.1f}")
    Console().print(table)
