"""One process at a time that writes into a directory."""

import fcntl
import os
from pathlib import Path
from typing import TextIO

from npg.errors import ConfigurationError

LOCK = ".lock"


def locked(
    directory: Path, what: str = "comparison", remedy: str = "choose another --output"
) -> TextIO:
    """Holds a directory's lock, which ends with the process, however that ends.

    Args:
        directory: Made if it is not there.
        what: Works in it.
        remedy: What the user can do if it cannot be had.

    Returns:
        What is to be closed when the work is done: a context manager.

    Raises:
        ConfigurationError: If another process holds it, or the directory cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # The file stays: removing it could remove the lock of the next one.
        lock = open(directory / LOCK, "a+")  # noqa: SIM115 - the caller's
    except OSError as error:
        raise ConfigurationError(f"{directory} cannot be written to ({error}): {remedy}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise ConfigurationError(
            f"another {what} (process {owner}) writes into {directory}: wait for its end, or "
            f"{remedy}"
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock
