"""Runs in processes of this machine, which write into the comparison's directory themselves."""

import time
from collections.abc import Mapping
from typing import Any

from comparison import machine
from comparison.backends.backend import Ending
from comparison.backends.process import Process
from comparison.job import Job


class Local:
    """This machine.

    Args:
        at_once: Runs at a time.
    """

    def __init__(self, at_once: int) -> None:
        self._machine = {**machine.here(), "at_once": at_once}

    def start(self, job: Job) -> "LocalRun":
        """Starts a run's process."""
        return LocalRun(job, self._machine)


class LocalRun:
    """A run in a process; see :class:`comparison.backends.backend.Run`."""

    def __init__(self, job: Job, machine: Mapping[str, Any]) -> None:
        self.machine = machine
        self._process = Process(job.command, job.directory)

    def ending(self) -> Ending | None:
        """Returns how it ended; None while it runs."""
        exit_code = self._process.exit_code
        return None if exit_code is None else Ending(exit_code)

    def interrupt(self) -> None:
        """Asks it to end, with all that it started."""
        self._process.interrupt()

    def end(self, deadline: float) -> None:
        """Ends it by force at a time."""
        self._process.end(deadline - time.monotonic())
