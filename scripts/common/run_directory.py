"""The directory of a run: its name, its configuration, its logs, and going on with them."""

import csv
import importlib.metadata
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger

from common.event_files import EventFiles
from common.files import replacing, tolerated
from common.progress_file import ProgressFile
from npg.errors import ConfigurationError

CONFIG = "config.yml"
PROGRESS = "progress.csv"
PLOT = "learning_curve.png"

RECORDED_VERSIONS = (
    "npg",
    "torch",
    "numpy",
    "scikit-learn",
    "gymnasium",
    "stable-baselines3",
    "sb3-contrib",
    "mujoco",
    "envpool",
)


def create(track_dir: Path, *names: str) -> Path:
    """Makes <track_dir>/<names, joined>_<n> with the first free n, also if several runs start."""
    name = re.sub(r"[^\w.-]", "-", "_".join(names))
    try:
        track_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"--track-dir {track_dir} is a file, or below one: name a directory"
        ) from error
    number = 1
    while True:
        directory = track_dir / f"{name}_{number}"
        try:
            directory.mkdir()
        except FileExistsError:
            number += 1
        else:
            return directory


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Writes everything that decides what the run does, and the versions it runs on.

    Args:
        directory: Of the run.
        config: Plain values that YAML knows.
    """
    with replacing(directory / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump({**config, "versions": versions()}, sort_keys=False))


def read_config(directory: Path) -> dict[str, Any]:
    """Reads what :func:`write_config` wrote."""
    file = directory / CONFIG
    if not file.is_file():
        raise ConfigurationError(f"{directory} is not the directory of a run: it has no {CONFIG}")
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    return config


def begin_anew(directory: Path, last: str, *others: str) -> None:
    """Lets a run without a checkpoint begin anew, which is said, if nothing would be lost by it.

    Args:
        directory: Of the run.
        last: Name of the checkpoint that is not there.
        *others: Names of files beside its log that training leaves.

    Raises:
        ConfigurationError: If the run has been trained.
    """
    traces = [name for name in others if (directory / name).exists()]
    progress = directory / PROGRESS
    if progress.is_file() and progress.stat().st_size:
        traces.append(PROGRESS)
    if traces:
        raise ConfigurationError(
            f"{directory} has no {last} to go on from, and to begin anew would overwrite its "
            f"{', '.join(traces)}: put {last} back, or start a new run without --resume"
        )
    print(f"note: the run begins anew: it ended before its first {last}", file=sys.stderr)


def open_logger(directory: Path, tables: bool, resumed_at: int | None, steps: str) -> Logger:
    """Opens progress.csv and TensorBoard, and tables on the terminal if wanted.

    Args:
        directory: Of the run.
        tables: Whether to print.
        resumed_at: Steps of the checkpoint that training goes on from. What was logged after it is
            dropped, since it comes again.
        steps: The column of progress.csv that counts the steps.

    Returns:
        Stable-Baselines3's logger.
    """
    formats: list[KVWriter] = [
        ProgressFile(directory / PROGRESS, steps, resumed_at),
        EventFiles(directory, resumed_at),
    ]
    if tables:
        formats.append(Table(sys.stdout))
    return Logger(folder=str(directory), output_formats=formats)


def read_progress(directory: Path) -> list[dict[str, str]]:
    """Reads the rows of progress.csv."""
    with open(directory / PROGRESS, newline="") as file:
        return list(csv.DictReader(file))


class Table(HumanOutputFormat):
    """Tables on the terminal, or wherever that was directed to."""

    def write(self, *logged: Any) -> None:
        """Prints a table; a full disk does not end the training."""
        with tolerated(Path("the standard output")):
            super().write(*logged)


def versions() -> dict[str, str]:
    """Returns the version of each package that decides what a run does."""
    installed = {"python": platform.python_version()}
    for package in RECORDED_VERSIONS:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
