"""Puts training through faults, and says what came of it.

    python scripts/faults.py all
    python scripts/faults.py kill --times 50
    python scripts/faults.py table --only hangs
    python scripts/faults.py soak --steps 1000000

Each row is a fault, what is promised for it, and whether that held. Exit code 1 if one did not.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from faulting import kills, mutations, soak, table
from faulting.report import Row, show

Part = Literal["kill", "mutate", "table", "soak"]


@dataclass
class Options:
    """Which faults."""

    part: tyro.conf.Positional[Part | Literal["all"]]
    """One kind of them, or all."""
    times: int = 50
    """Kills of each environment's run."""
    mutations: int = 10_000
    """Changed checkpoints."""
    only: str = ""
    """Part of the names of the rows that are wanted: of faults, or of killed environments."""
    steps: int = 1_000_000
    """Of the soak."""
    output: Path | None = None
    """Directory that keeps the runs; None is a temporary one."""
    seed: int = 0
    """Of the moments and the changes."""


def main(options: Options) -> int:
    """Runs them; returns the exit code."""
    parts = {
        "kill": lambda place: kills.rows(place, options.times, options.seed, options.only),
        "table": lambda place: table.rows(place, options.only),
        "soak": lambda place: soak.rows(place, options.steps),
        "mutate": lambda place: mutations.rows(place, options.mutations, options.seed),
    }
    chosen = parts if options.part == "all" else {options.part: parts[options.part]}
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, run in chosen.items():
            directory = (options.output or Path(temporary)) / name
            directory.mkdir(parents=True)
            found += run(directory)
    show(found)
    return 0 if all(row.held for row in found) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
