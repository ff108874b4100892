"""Memory of this process, as the operating system counts it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLEAR = Path("/proc/self/clear_refs")
CLEAR_PEAK = "5"


def resident(process: int | None = None) -> float:
    """Returns the MB of a process that are in memory now; None is this one."""
    return _read("VmRSS", process)


def peak() -> float:
    """Returns the most MB that were, since the program began or the peak was forgotten.

    What getrusage says includes the program that started this one.
    """
    return _read("VmHWM")


class PeakMemory:
    """The most memory that is taken from now on, beyond what is taken now.

    Linux alone lets a peak be forgotten, without which this one would be that of the imports.
    """

    def __init__(self) -> None:
        self._known = CLEAR.exists()
        self._first = self._most = resident() if self._known else 0.0
        self._forget()

    @property
    def megabytes(self) -> float | None:
        """The most so far; None where it cannot be known."""
        self._note()
        return self._most - self._first if self._known else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is taken inside does not count."""
        self._note()
        try:
            yield
        finally:
            self._forget()

    def _note(self) -> None:
        if self._known:
            self._most = max(self._most, peak())

    def _forget(self) -> None:
        try:
            CLEAR.write_text(CLEAR_PEAK)
        except OSError:  # another system, or not allowed
            self._known = False


def _read(name: str, process: int | None = None) -> float:
    status = Path("/proc") / ("self" if process is None else str(process)) / "status"
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text())
    return int(found[1]) / 1024  # type: ignore[index]
