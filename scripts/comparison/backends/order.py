"""A run that one machine asks for and another one makes: its command in the words of both."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common import ROOT


@dataclass(frozen=True)
class Order:
    """A run, in the words of the machine that asks for it.

    Attributes:
        command: What to run.
        interpreter: What Python is called there.
        root: Where the project lies there.
        directory: Where the command is told to write.
        working_directory: Where it would run, relative to the project.
        inputs: What is in the files that the command names.
    """

    command: Sequence[str]
    interpreter: str
    root: str
    directory: str
    working_directory: str = "."
    inputs: Mapping[str, bytes] = field(default_factory=dict)


def at_home(order: Order, directory: Path) -> list[str]:
    """Writes the inputs of a run; returns its command in the words of this machine.

    Args:
        order: For the run.
        directory: To write into.
    """
    words = {order.interpreter: sys.executable, order.directory: str(directory)}
    for name, content in order.inputs.items():
        path = directory / "inputs" / Path(name).name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        words[name] = str(path)
    return [words[word] if word in words else _moved(word, order.root) for word in order.command]


def _moved(word: str, root: str) -> str:
    """Returns a path below the other machine's project as one below this machine's."""
    path = Path(word)
    return str(ROOT / path.relative_to(root)) if path.is_relative_to(root) else word
