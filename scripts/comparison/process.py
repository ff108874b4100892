"""A run's own process: its end with the comparison, and what it says meanwhile."""

import os
import threading
import time

PARENT = "NPG_COMPARISON"  # the comparison's process, in a run's environment
SECONDS_BETWEEN_LOOKS = 1.0


def end_with_parent() -> None:
    """Ends this process soon after the comparison that started it, however that ended.

    The comparison may have been killed, and the next one makes the run again.
    """
    parent = os.environ.get(PARENT)
    if parent is None:  # started by hand
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
