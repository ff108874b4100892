"""A run that one machine asks for and another one makes: its command in the words of both."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from common import ROOT


@dataclass(frozen=True)
class Order:
    """A run, in the words of the machine that asks for it.

    Attributes:
        command: What to run: interpreter, script, and what the script is told.
        root: Where the project lies there.
        working_directory: Where it would run, relative to the project.
        inputs: What is in the files that the command names.
    """

    command: Sequence[str]
    root: str
    working_directory: str = "."
    inputs: Mapping[str, bytes] = field(default_factory=dict)


def at_home(order: Order, directory: Path) -> list[str]:
    """Writes the inputs of a run; returns its command in the words of this machine.

    Args:
        order: For the run.
        directory: To write into.

    Returns:
        The command, of which only the program, --preset and --output are other words here: what
        else looks like a path may be a name, or a path on every machine.
    """
    inputs = {}
    for name, content in order.inputs.items():
        path = directory / "inputs" / Path(name).name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        inputs[name] = str(path)
    _, script, *told = order.command
    here = [sys.executable, _moved(script, order.root)]
    for option, word in pairwise(["", *told]):
        if option == "--output":
            word = str(directory)
        elif option == "--preset":
            word = inputs.get(word, word)
        here.append(word)
    return here


def _moved(word: str, root: str) -> str:
    """Returns a path below the other machine's project as one below this machine's."""
    path = Path(word)
    return str(ROOT / path.relative_to(root)) if path.is_relative_to(root) else word
