"""A run on a machine of a cluster, in a temporary directory whose files are sent home."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from common import ROOT

from comparison import files, machine
from comparison.backends.order import Order, at_home
from comparison.backends.process import Process


@dataclass(frozen=True)
class Seen:
    """What a look at a run shows.

    Attributes:
        exit_code: None while it runs.
        files: Their content by name: of the progress, and of all when it has ended.
        node: Ray's name of the machine.
        machine: Its `cpu` and `cores`.
    """

    exit_code: int | None
    files: Mapping[str, bytes]
    node: str
    machine: Mapping[str, Any]


class Worker:
    """An actor of Ray, which makes one run after another, each in a temporary directory."""

    def __init__(self) -> None:
        self._machine = machine.here()
        self._node = ray.get_runtime_context().get_node_id()

    def start(self, order: Order) -> Seen:
        """Starts a run; returns a look at it."""
        self._ended: Seen | None = None
        # Below what Ray has unpacked: it removes that some day, should this process be killed.
        self._temporary = tempfile.TemporaryDirectory(dir=ROOT, ignore_cleanup_errors=True)
        self._directory = Path(self._temporary.name)
        command = at_home(order, self._directory)
        place = ROOT / order.working_directory
        self._process = Process(command, self._directory, place if place.is_dir() else ROOT)
        return self.look()

    def look(self) -> Seen:
        """Returns how far the run is. One that has ended leaves nothing on this machine's disk."""
        if self._ended is not None:
            return self._ended
        exit_code = self._process.exit_code
        names = [files.PROGRESS] if exit_code is None else [files.RESULT, files.PROGRESS, files.LOG]
        paths = [path for path in map(self._directory.joinpath, names) if path.is_file()]
        content = {path.name: path.read_bytes() for path in paths}
        seen = Seen(exit_code, content, self._node, self._machine)
        if exit_code is not None:
            self._temporary.cleanup()
            self._ended = seen
        return seen

    def interrupt(self) -> None:
        """Asks the run to end, with all that it started."""
        self._process.interrupt()

    def end(self, seconds: float) -> Seen:
        """Ends the run by force.

        Args:
            seconds: That it has to end by itself.

        Returns:
            What it left.
        """
        self._process.end(seconds)
        return self.look()
