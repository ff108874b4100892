"""Files that are whole or not there."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside a file, which takes the file's place if nothing was raised."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(directory: Path) -> None:
    """Removes the temporary files that killed processes left behind; nobody may be writing now."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def tolerated(path: Path) -> Iterator[None]:
    """Makes a warning of a file that cannot be written: training need not end for it.

    Args:
        path: Of the file, for the warning, which is given once.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        warnings.warn(
            f"{path} cannot be written ({reason}): the training goes on, and tries again later",
            stacklevel=2,
        )
