"""The machine of a run, which its seconds depend on."""

import os
import platform
from pathlib import Path
from typing import Any

INFORMATION = Path("/proc/cpuinfo")
ARM_MODEL = ("CPU implementer", "CPU part")  # numbers, where a PC has a "model name"


def here() -> dict[str, Any]:
    """Describes this machine: the name of its processor, `cpu`, and how many `cores` it may use."""
    return {"cores": _cores(), "cpu": _processor()}


def _cores() -> int:
    """Returns the cores that this process is bound to (taskset), where the system tells them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """Returns what tells the processor from others, if need be by the name of its machine."""
    lines = INFORMATION.read_text().splitlines() if INFORMATION.is_file() else []
    entries = [tuple(map(str.strip, line.split(":", 1))) for line in lines if ":" in line]
    for name, value in entries:
        if name == "model name":
            return value
    architecture = platform.processor() or platform.machine()
    model = [f"{name} {value}" for name, value in entries if name in ARM_MODEL]
    if not model:
        return f"{architecture} of {platform.node()}"
    # Large and small cores may lie side by side, each with its own numbers.
    return ", ".join([architecture, *dict.fromkeys(model)])
