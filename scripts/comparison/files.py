"""The files of a comparison: a directory per run, each file whole or not there."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import replacing

RUNS = "runs"
RESULT = "result.json"
DAMAGED = f"{RESULT}.damaged"  # what somebody made of one; a run made again leaves it
PROGRESS = "progress.json"
MACHINE = "machine.json"  # of a run under way; result.json has it in the end
LOG = "log.txt"


def run_name(name: str, task: str, seed: int, *more: object) -> str:
    """Returns the name of a run, which is that of its directory.

    Args:
        name: Of the agent or optimizer.
        task: Of the environment, or of data and model.
        seed: Of everything random.
        *more: What else tells runs apart, such as a learning rate.
    """
    parts = map(str, (name, task, seed, *more))
    return re.sub(r"[^\w.+-]", "-", "_".join(parts))


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file under a temporary name first, one line an entry."""
    lines = (
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in content.items()
    )
    with replacing(path) as temporary:
        temporary.write_text("{\n " + ",\n ".join(lines) + "\n}\n")


def read(path: Path) -> dict[str, Any] | None:
    """Reads a JSON file; None if it is not there, or was damaged by somebody."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def set_aside(directory: Path) -> Path:
    """Renames a run's result.json, in the place of one that was set aside earlier.

    Args:
        directory: Of the run.

    Returns:
        What it is called now.
    """
    damaged = directory / DAMAGED
    os.replace(directory / RESULT, damaged)
    return damaged


def clear(directory: Path) -> None:
    """Empties the directory of a run, but for what was set aside.

    Args:
        directory: Of the run; nothing happens where there is none.
    """
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != DAMAGED:
            path.unlink(missing_ok=True)
