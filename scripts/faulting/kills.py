"""kill -9 at any moment, and --resume after it."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from rich.progress import track

from faulting.report import Row
from faulting.trained import finished, parameters, run_in, same, start, unreadable

STEPS = 20_000
ENVIRONMENTS = {"CartPole-v1": (), "HalfCheetah-v5": ("--normalize-obs", "--normalize-reward")}


def rows(place: Path, times: int, seed: int, only: str) -> list[Row]:
    """Kills runs of TRPO on each environment at random moments.

    Args:
        place: Empty directory to work in.
        times: Kills of each.
        seed: Of the moments.
        only: Part of the ids of the environments that are wanted.

    Returns:
        A row for each environment.
    """
    return [_row(place / name, name, times, seed) for name in ENVIRONMENTS if only in name]


def _row(place: Path, env_id: str, times: int, seed: int) -> Row:
    words = ["trpo", "--env", env_id, "--total-timesteps", STEPS, "--num-envs", 4, "--n-steps", 256]
    words += ["--save-freq", 2_000, "--eval-freq", 8_000, "--backend", "gymnasium"]
    words += ENVIRONMENTS[env_id]
    process = start(*words, "--track-dir", place / "whole")
    whole = _begun(process, place / "whole")
    began = time.monotonic()
    output, _ = process.communicate()
    lasted = time.monotonic() - began
    if process.returncode or whole is None:
        return Row(f"kill -9, {env_id}", "", output[-200:], False)
    expected = parameters(whole)
    draw = np.random.default_rng(seed)
    alike = torn = 0
    for number in track(range(times), f"kill -9, {env_id}"):
        track_dir = place / str(number)
        process = start(*words, "--track-dir", track_dir)
        run = _begun(process, track_dir)
        assert run is not None
        time.sleep(draw.uniform(0, lasted))
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        torn += len(unreadable(run))
        finished("trpo", "--resume", run, "--total-timesteps", STEPS)
        alike += same(parameters(run), expected)
    return Row(
        f"kill -9 at {times} random moments of {STEPS:,} steps, {env_id}",
        "--resume ends with the uninterrupted run's parameters; no file is torn",
        f"{alike} of {times} the same, {torn} files torn",
        alike == times and torn == 0,
    )


def _begun(process: subprocess.Popen[str], track_dir: Path) -> Path | None:
    """Waits until a run has its directory, which takes as long as the libraries' imports."""
    while process.poll() is None and run_in(track_dir) is None:
        time.sleep(0.01)
    return run_in(track_dir)
