"""What the reports of all scripts consist of."""

import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from common import ROOT


def command(script: str, *words: object, processes: int = 1) -> str:
    """Returns a command that can be pasted, with the interpreter that is running.

    Args:
        script: Its name.
        *words: Its arguments.
        processes: How many torchrun is to start; 1 is a process without it.

    Returns:
        The command.
    """
    program = [_program("python")]
    if processes > 1:
        program = [_program("torchrun"), "--nproc-per-node", str(processes)]
    return shlex.join([*program, os.path.relpath(ROOT / "scripts" / script), *map(str, words)])


def tensorboard(directory: Path) -> str:
    """Returns the command that shows a run's curves."""
    return shlex.join([_program("tensorboard"), "--logdir", str(directory)])


def print_places(title: str, places: Mapping[str, object]) -> None:
    """Prints a title, which may have rich's markup, and a line for each place or command.

    What cannot be printed, since the disk of a redirection is full, is no failure of the work.
    """
    console = Console(soft_wrap=True, highlight=False)
    with suppress(OSError):
        console.print(f"\n{title}")
        for name, value in places.items():
            console.print(f"  {name:<16}{value}", markup=False)


def _program(name: str) -> str:
    """Returns a program of this interpreter's environment, by path if it lies under here."""
    program = Path(sys.executable).parent / name
    below = program.is_relative_to(Path.cwd())
    return os.path.relpath(program) if below and program.exists() else name
