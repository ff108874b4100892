"""The machine of a run, which its seconds depend on."""

import os
import platform
from pathlib import Path
from typing import Any


def here() -> dict[str, Any]:
    """Describes this machine: the name of its processor, `cpu`, and its number of `cores`."""
    return {"cores": os.cpu_count() or 1, "cpu": _processor()}


def _processor() -> str:
    """Returns the processor's name where the system tells it, else its architecture."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
