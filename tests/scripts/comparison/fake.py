"""Runs of a comparison that take no time to start."""

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

from comparison import files
from comparison.job import Job
from comparison.runner import Outcome, run_all
from comparison.table import LiveTable
from rich.console import Console

FINISH = """
import json, os, sys
from pathlib import Path
directory, seed = Path(sys.argv[1]), int(sys.argv[2])
result = {"name": "fake", "task": "task", "seed": seed, "status": "finished", "final": [seed, 4],
          "steps": 100, "seconds": 2.0, "threads": os.environ["OMP_NUM_THREADS"]}
(directory / "result.json").write_text(json.dumps(result))
"""


def job(directory: Path, seed: int, code: str = FINISH) -> Job:
    """Makes a run of a program, which is told its directory and seed."""
    name = files.run_name("fake", "task", seed)
    place = directory / files.RUNS / name
    command = [sys.executable, "-S", "-c", code, str(place), str(seed)]
    return Job(name, command, place, {"name": "fake", "task": "task", "seed": seed, "command": "x"})


def run(
    jobs: list[Job], at_once: int = 2, terminal: bool = False, **options
) -> tuple[Outcome, str]:
    """Makes the runs; returns how that ended, and what was drawn."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120)
    return run_all(jobs, at_once, LiveTable(jobs, "title", "return", console), **options), (
        text.getvalue()
    )


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
