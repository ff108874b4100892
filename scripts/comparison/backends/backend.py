"""What the runner asks of a backend, and of a run that it started."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from comparison.job import Job


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        exit_code: Of its process, -n after signal n; None if nobody knows.
        lost: Why nobody knows; empty if the process ended by itself.
    """

    exit_code: int | None
    lost: str = ""


class Run(Protocol):
    """A run that was started. What it writes lies in its job's directory when it has ended."""

    @property
    def machine(self) -> Mapping[str, Any]:
        """Where it runs, as far as is known: `cpu`, `cores`, and runs `at_once` there at most."""
        ...

    def ending(self) -> Ending | None:
        """Returns how it ended; None while it runs. Does not wait."""
        ...

    def interrupt(self) -> None:
        """Asks it to end, with all that it started. Does not wait."""
        ...

    def end(self, deadline: float) -> None:
        """Ends it by force.

        Args:
            deadline: Until when it may end by itself, in seconds of ``time.monotonic``.
        """
        ...


class Backend(Protocol):
    """Starts runs."""

    def start(self, job: Job) -> Run:
        """Starts a run, in an empty directory."""
        ...
