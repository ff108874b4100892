"""How the runs of a comparison are made. Nothing heavy is imported for it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True)
class Execution:
    """Where the runs are made, and how many at a time."""

    jobs: int = 1
    """Runs at a time, one thread each. With more than there are cores, seconds are no measure."""
    backend: Literal["local", "ray"] = "local"
    """In processes of this machine, or on the machines of a Ray cluster ("pip install .[ray]"),
    which need the packages; this project's source is sent to them."""
    address: str | None = None
    """Of the Ray cluster: auto, or HOST:PORT of the head, on a machine of the cluster;
    ray://HOST:PORT from outside; None starts one on this machine."""
    retry_failed: bool = False
    """Make the runs again that failed, diverged or were too slow earlier."""
