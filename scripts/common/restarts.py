"""Going on with a run where torchrun starts its processes again (``--max-restarts``).

Restarted processes get the same command line, which would start a new run. What they have in
common with those before them is the name of the job, or else the torchrun that started them: a file
of this name, where runs are kept, says which run it is. The first rank reads and writes it.
"""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from common.files import replacing


def restarted(argv: Sequence[str], track_dir: Path) -> list[str]:
    """Returns the command line of a process that torchrun may have started again.

    Args:
        argv: The words, the first of which names the agent.
        track_dir: Where runs are kept.

    Returns:
        The same; in a restarted process the words that resume the run which the first one started.
    """
    marker = _marker(track_dir)
    asked = any(word.split("=")[0] == "--resume" for word in argv)
    if marker is None or asked or not marker.is_file():
        return list(argv)
    agent, directory = marker.read_text().split("\n", 1)
    if agent != _agent() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        marker.unlink()  # of an earlier job of this name
        return list(argv)
    return [*argv[:1], "--resume", directory]


def remember(directory: Path, track_dir: Path) -> None:
    """Leaves word of which run this job's is, for processes that are started again.

    Args:
        directory: Of the run.
        track_dir: Where runs are kept.
    """
    marker = _marker(track_dir)
    if marker is not None:
        track_dir.mkdir(parents=True, exist_ok=True)
        with replacing(marker) as temporary:
            temporary.write_text(f"{_agent()}\n{directory.resolve()}")


def forget(track_dir: Path) -> None:
    """Takes the word back, when the run has ended well.

    Args:
        track_dir: Where runs are kept.
    """
    marker = _marker(track_dir)
    if marker is not None:
        marker.unlink(missing_ok=True)


def _agent() -> str:
    """The torchrun that started this process; it outlives restarts."""
    return f"{socket.gethostname()}-{os.getppid()}"


def _marker(track_dir: Path) -> Path | None:
    """The file of this job; None of a process that torchrun did not start."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job is None:
        return None
    name = "".join(c if c.isalnum() else "-" for c in (_agent() if job == "none" else job))
    return track_dir / f".torchrun-{name}"
