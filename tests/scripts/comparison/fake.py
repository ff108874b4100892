"""Runs of a comparison that take no time to start."""

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from comparison import files
from comparison.backends.backend import Backend
from comparison.backends.local import Local
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


# Another machine puts its own directory after --output, as in the commands of compare.py.
WITHOUT_OPTION = "import sys; sys.argv.remove('--output')\n"


def job(directory: Path, seed: int, code: str = FINISH) -> Job:
    """Makes a run of a program, which is told its directory and seed."""
    name = files.run_name("fake", "task", seed)
    place = directory / files.RUNS / name
    command = [sys.executable, "-S", "-c", WITHOUT_OPTION + code, "--output", str(place), str(seed)]
    return Job(name, command, place, {"name": "fake", "task": "task", "seed": seed, "command": "x"})


def run(
    jobs: list[Job],
    at_once: int = 2,
    terminal: bool = False,
    backend: Backend | None = None,
    **options,
) -> tuple[Outcome, str]:
    """Makes the runs, locally if nothing else is said; returns how that ended, what was drawn."""
    text = io.StringIO()
    table = LiveTable(
        jobs, "title", "return", Console(file=text, force_terminal=terminal, width=120)
    )
    outcome = run_all(jobs, backend or Local(at_once), at_once, table, **options)
    return outcome, text.getvalue()


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    """Says whether a process runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # One that was orphaned may wait for an init process that does not collect it.
    stat = Path(f"/proc/{process}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
