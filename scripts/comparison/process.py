"""A run's own process, and its end with the one that started it."""

import os
import signal
import threading
import time

PARENT = "NPG_COMPARISON"  # the process that started a run, in the run's environment
SECONDS_BETWEEN_LOOKS = 1.0


def end_with_parent() -> None:
    """Ends this process, and all that it started, soon after the one that started it.

    That may have been killed, and the next comparison makes the run again.
    """
    parent = os.environ.get(PARENT)
    if parent is None:  # started by hand
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os.killpg(0, signal.SIGKILL)  # its group is its own: see backends/process.py

    threading.Thread(target=watch, daemon=True).start()
