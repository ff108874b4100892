"""Runs of train.py in processes of their own, and the parameters that they left."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from common import ROOT

from npg import checkpoints

TRAIN = ROOT / "scripts" / "train.py"
NONE: Mapping[str, str] = MappingProxyType({})


def start(
    *words: object,
    launcher: Sequence[str] = (),
    variables: Mapping[str, str] = NONE,
    **options: Any,
) -> subprocess.Popen[str]:
    """Starts train.py on one thread a process, in a process group of its own.

    Args:
        *words: Of its command line.
        launcher: Module and arguments that start it, instead of Python alone.
        variables: Of the process's environment, beside those of this one.
        **options: Of Popen.

    Returns:
        The process, whose output, errors included, can be read.
    """
    return subprocess.Popen(
        [sys.executable, *launcher, str(TRAIN), *map(str, words), "--no-progress-bar"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | variables,
        text=True,
        shell=False,
        start_new_session=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options},
    )


def finished(*words: object) -> tuple[int, str]:
    """Runs train.py to its end; returns its exit code and what it said."""
    process = start(*words)
    output, _ = process.communicate()
    return process.returncode, output


def run_in(track_dir: Path) -> Path | None:
    """The directory of the one run in there, if it can be resumed."""
    found = [path.parent for path in track_dir.glob("*/config.yml")]
    return found[0] if found else None


def parameters(run: Path) -> dict[str, torch.Tensor]:
    """The policy that a run ended with."""
    states: dict[str, Any] = checkpoints.read(run / "last_model.zip")["states"]
    policy: dict[str, torch.Tensor] = states["policy"]
    return policy


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether parameters are equal in every bit."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def unreadable(run: Path) -> Sequence[str]:
    """Names of the checkpoints in a run's directory that cannot be read."""
    bad = []
    for file in run.glob("*.zip"):
        try:
            checkpoints.read(file)
        except ValueError:
            bad.append(file.name)
    return bad
