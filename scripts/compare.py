"""Draws runs of classify.py in one picture, one colour an optimizer.

    python scripts/compare.py runs/digits_mlp_adamw_1 runs/digits_mlp_natural-gradient_1

Exit codes: 0 drawn, 2 the runs cannot be drawn together.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from classification import plots
from common.failures import Failure, configuration_errors, plain_warnings


@dataclass
class Options:
    """Which runs to draw."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs, all of one model on one data set."""
    output: Path = Path("comparison.png")
    """PNG file to write."""


def main(argv: Sequence[str]) -> int:
    """Draws as the command line says; returns the exit code."""
    plain_warnings()
    options = tyro.cli(Options, prog="compare.py", description=__doc__, args=argv)
    try:
        with configuration_errors():
            plots.draw(options.runs, options.output)
    except Failure as failure:
        return failure.report()
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
