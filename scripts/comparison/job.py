"""A run of a comparison, as the runner and the table know it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import ROOT

from comparison import files


@dataclass(frozen=True, eq=False)
class Job:
    """A run to be made.

    Attributes:
        name: Of the run; see :func:`comparison.files.run_name`.
        command: What the process runs; it names the directory after --output. It writes result.json
            when it has finished, progress.json meanwhile, and ends with another exit code than 0 if
            it fails.
        directory: Of the run.
        about: What result.json says that is known before: kind, name, task, seed, command.
        inputs: Words of the command after --preset that name files, which another machine needs.
    """

    name: str
    command: list[str]
    directory: Path
    about: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[str] = ()

    def result(self) -> dict[str, Any] | None:
        """Returns what the run gave; None if it has not ended."""
        return files.read(self.directory / files.RESULT)

    def progress(self) -> dict[str, Any]:
        """Returns how far the run is; empty if it has not said."""
        return files.read(self.directory / files.PROGRESS) or {}


def compare_command(*words: object) -> list[str]:
    """Returns the command of a process that runs a subcommand of compare.py."""
    return [sys.executable, str(ROOT / "scripts" / "compare.py"), *map(str, words)]
