"""The end of a run in which something lasts too long."""

import os
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType

SECONDS_BETWEEN_LOOKS = 1.0  # at most


class TimeLimit:
    """Ends this process, exit code 1, if what is done inside the context lasts too long.

    A thread watches: a signal would wait until the library call is over that takes the time, which
    may be a factorisation of minutes. What was interrupted cannot be gone on with, hence the end.

    Args:
        seconds: How long it may last, each time; that it is over is seen a tenth later at most.
        last_words: Called before the end, in the watching thread.
    """

    def __init__(self, seconds: float, last_words: Callable[[], None]) -> None:
        self.seconds = seconds
        self._last_words = last_words
        self._began: float | None = None
        self._lock = threading.Lock()  # what ends just in time has not lasted too long
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> None:
        with self._lock:
            self._began = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._began = None

    def _watch(self) -> None:
        while True:
            time.sleep(min(self.seconds / 10, SECONDS_BETWEEN_LOOKS))
            with self._lock:
                if self._began is None or time.perf_counter() - self._began <= self.seconds:
                    continue
                try:
                    self._last_words()
                except BaseException:
                    traceback.print_exc()  # the end would swallow it
                finally:
                    os._exit(1)
