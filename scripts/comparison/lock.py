"""One comparison at a time in a directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from npg.errors import ConfigurationError

LOCK = ".lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds a directory's lock, which ends with the process, however that ends.

    Args:
        directory: Of the comparison; made if it is not there.

    Yields:
        Nothing.

    Raises:
        ConfigurationError: If another comparison holds it, or the directory cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / LOCK, "a+")  # noqa: SIM115 - a context below
    except OSError as error:
        raise ConfigurationError(
            f"{directory} cannot be written to ({error}): choose another --output"
        ) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigurationError(
                f"another comparison (process {file.read().strip() or 'unknown'}) writes into "
                f"{directory}: wait for its end, or choose another --output"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        # The file stays: removing it could remove the lock of the next one.
        yield
