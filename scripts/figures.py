"""Draws what an optimizer does where it can be seen: one picture a subcommand.

    python scripts/figures.py loss-flow --output docs/figures/loss_flow.png

Each runs the library's own code, and prints the numbers that its picture shows. Exit codes:
0 drawn, 2 the picture cannot be written.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro
from common.failures import Failure, configuration_errors, plain_warnings
from drawings import estimator_variances, loss_flow, minimisation, parametrisations, sampling_view

from npg.errors import ConfigurationError

# A new picture is one line here: a function that draws it to a file and returns what it found.
FIGURES: dict[str, Callable[[Path], dict[str, str]]] = {
    "loss-flow": loss_flow.draw,
    "minimise": minimisation.draw,
    "natural-vs-euclidean": parametrisations.draw,
    "policy-gradient-vs-es": estimator_variances.draw,
    "sampling-view": sampling_view.draw,
}


def main(argv: Sequence[str]) -> int:
    """Draws as the command line says; returns the exit code."""
    plain_warnings()
    commands = {name: _command(name, draw) for name, draw in FIGURES.items()}
    try:
        with configuration_errors():
            tyro.extras.subcommand_cli_from_dict(
                commands, prog="figures.py", description=__doc__, args=argv
            )
    except Failure as failure:
        return failure.report()
    return 0


def _command(name: str, draw: Callable[[Path], dict[str, str]]) -> Callable[[Path], None]:
    """Makes a subcommand, which has the drawing's first line as its help."""
    default = Path(f"{name.replace('-', '_')}.png")

    def command(output: Path = default) -> None:
        if output.suffix != ".png" or not output.parent.is_dir():
            raise ConfigurationError(
                f"output must be a .png file in a directory that exists, got {output}"
            )
        for key, value in draw(output).items():
            print(f"  {key:<44}{value}")
        print(output)

    command.__doc__ = f"{(draw.__doc__ or '').splitlines()[0]}\n\nArgs:\n    output: PNG file."
    return command


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
