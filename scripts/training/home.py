"""A run's directory, which may be removed while the run goes on."""

import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from common.failures import TRAINING, Failure
from common.files import tolerated
from common.lock import LOCK, locked
from common.run_directory import CONFIG, PROGRESS

from npg.errors import ConfigurationError


class Home:
    """Makes the directory anew if somebody removed it, and leaves it to a run that has taken it.

    Args:
        directory: Of the run.
        lock: That the run holds on it; None in a process that writes nothing there.
        held: What is closed when the run has ended.

    Attributes:
        contents: What to call to write into an empty directory what the run still knows.
    """

    def __init__(self, directory: Path, lock: TextIO | None, held: ExitStack) -> None:
        self.directory = directory
        self.held = held
        self.contents: list[Callable[[], None]] = []
        self._lock = lock

    def ensure(self) -> None:
        """To be called before anything is written there.

        Raises:
            Failure: If another run has taken the directory; nothing is written to it.
        """
        try:
            there = (self.directory / LOCK).stat()
        except OSError:
            with tolerated(self.directory):
                self._make()
            return
        if not os.path.samestat(there, os.fstat(self._lock.fileno())):
            raise Failure(
                f"{self.directory} was removed, and another run has taken its place: this one ends "
                "and leaves it alone",
                TRAINING,
            )
        # Whoever was still removing when the directory was made anew has removed from that, too.
        if not all((self.directory / name).exists() for name in (CONFIG, PROGRESS)):
            with tolerated(self.directory):
                self._fill()

    def _make(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            lock = locked(self.directory, "run", "start a new one")
        except ConfigurationError as error:
            raise error.__cause__ or error from None
        self._lock = self.held.enter_context(lock)
        warnings.warn(
            f"{self.directory} was removed: it is made anew, with what this process still knows of "
            "the run",
            stacklevel=2,
        )
        self._fill()

    def _fill(self) -> None:
        for write in self.contents:
            write()
