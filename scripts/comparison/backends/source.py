"""The part of the project that runs need, which is sent to other machines."""

import shutil
from pathlib import Path

from common import ROOT

PARTS = ("npg", "agents", "envs", "scripts")


def stage(directory: Path) -> None:
    """Copies that part to where it is sent from; modules that lie beside it come along."""
    for name in PARTS:
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.py"):  # agents and environments of the user's own
        shutil.copy(path, directory)
