"""Going on with a run where torchrun starts its processes again (``--max-restarts``).

Restarted processes get the same command line, which would start a new run. What they have in common
with those before them is the name of the job, or else the torchrun that started them; a file under
this name says where the run is.
"""

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from common.files import replacing


def restarted(argv: Sequence[str]) -> list[str]:
    """Returns the command line of a process that torchrun may have started again.

    Args:
        argv: The words, the first of which names the agent.

    Returns:
        The same; in a restarted process the words that resume the run which the first one started.
    """
    marker = _marker()
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if marker is None or not again or "--resume" in argv or not marker.is_file():
        return list(argv)
    if marker.stat().st_uid != os.getuid():  # where everybody may write
        return list(argv)
    return [*argv[:1], "--resume", marker.read_text()]


@contextmanager
def restartable(directory: Path) -> Iterator[None]:
    """Leaves word of where the run is, until it ends in peace.

    Args:
        directory: Of the run.

    Yields:
        Nothing.
    """
    marker = _marker()
    if marker is not None and os.environ.get("LOCAL_RANK", "0") == "0":
        with replacing(marker) as temporary:
            temporary.write_text(str(directory.resolve()))
    yield
    if marker is not None:
        with suppress(OSError):
            marker.unlink()


def _marker() -> Path | None:
    """The file of this job; None of a process that torchrun did not start."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job is None:
        return None
    if job == "none":  # torchrun was given no name
        job = f"{socket.gethostname()}-{os.getppid()}"
    name = "".join(c if c.isalnum() else "-" for c in job)
    return Path(tempfile.gettempdir()) / f"npg-run-of-{os.getuid()}-{name}"
