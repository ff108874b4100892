"""The process of a run on the machine where it runs: on one thread, ended with all it started."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from comparison import files
from comparison.process import PARENT

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)


class Process:
    """A command that has been started, and what it says, which goes into a file.

    Args:
        command: What runs.
        directory: For the log.
        working_directory: Where it runs; None is here.
    """

    def __init__(
        self, command: Sequence[str], directory: Path, working_directory: Path | None = None
    ) -> None:
        with open(directory / files.LOG, "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | ONE_THREAD | {PARENT: str(os.getpid())},
                cwd=working_directory,
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends the others
            )

    @property
    def exit_code(self) -> int | None:
        """-n after signal n; None while it runs."""
        return self._process.poll()

    def interrupt(self) -> None:
        """Asks it and all that it started to end."""
        self._signal(signal.SIGTERM)

    def end(self, seconds: float) -> None:
        """Ends it and all that it started by force.

        Args:
            seconds: That it has to end by itself.
        """
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(seconds, 0))
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
