"""What a training run's directory holds beside what every run's does."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from common import run_directory
from common.run_directory import (
    CONFIG,
    PLOT,
    PROGRESS,
    begin_anew,
    create,
    read_config,
    read_progress,
)
from stable_baselines3.common.logger import Logger

from training.options import Options

__all__ = [
    "CONFIG",
    "PLOT",
    "PROGRESS",
    "begin_anew",
    "create",
    "read_config",
    "read_progress",
]

EVALUATIONS = "evaluations.npz"
BEST = "best_model.zip"
LAST = "last_model.zip"

# What training leaves beside its checkpoint and its log.
TRACES = (BEST, EVALUATIONS)


def write_config(directory: Path, agent: str, options: Options) -> None:
    """Writes everything that decides what the run does."""
    values: dict[str, Any] = dataclasses.asdict(options)
    del values["resume"]
    values["track_dir"] = str(options.track_dir)
    if options.hidden_layers is not None:
        values["hidden_layers"] = list(options.hidden_layers)
    run_directory.write_config(directory, {"agent": agent, "options": values})


def open_logger(directory: Path, tables: bool, resumed_at: int | None) -> Logger:
    """Opens the logs of a run, whose rows Stable-Baselines3 numbers by environment steps."""
    return run_directory.open_logger(directory, tables, resumed_at, "time/total_timesteps")


def read_evaluations(directory: Path, until: int | None = None) -> dict[str, np.ndarray]:
    """Reads evaluations.npz, up to a number of steps; empty if there is none yet."""
    file = directory / EVALUATIONS
    if not file.is_file():
        return {}
    with np.load(file) as stored:
        kept = slice(None) if until is None else stored["timesteps"] <= until
        return {name: stored[name][kept] for name in stored.files}
