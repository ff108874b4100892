"""What a run says when it ends."""

import os
import shlex
import sys
from pathlib import Path

from rich.console import Console

from training.callbacks import Evaluations
from training.run_directory import BEST, LAST, PLOT
from training.session import Run

SCRIPTS = Path(__file__).resolve().parents[1]


def command(script: str, *words: object) -> str:
    """Returns a command that can be pasted, with the interpreter that is running."""
    return shlex.join([_program("python"), os.path.relpath(SCRIPTS / script), *map(str, words)])


def print_summary(run: Run, evaluations: Evaluations, seconds: float) -> None:
    """Prints the result and where everything is."""
    mean, deviation = evaluations.last or (float("nan"), float("nan"))
    steps = run.model.num_timesteps
    tensorboard = shlex.join([_program("tensorboard"), "--logdir", str(run.directory)])
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"\n[bold]{run.agent.upper()} on {run.options.env}, seed {run.options.seed}: "
        f"evaluation [cyan]{mean:,.1f} ± {deviation:,.1f}[/cyan][/bold] "
        f"after {steps:,} steps, {seconds:.0f} s"
    )
    for name, value in {
        "learning curve": run.directory / PLOT,
        "checkpoint": f"{run.directory / BEST} (the last one: {LAST})",
        "TensorBoard": tensorboard,
        "replay": command("evaluate.py", run.directory, "--episodes", 20),
    }.items():
        console.print(f"  {name:<16}{value}", markup=False)


def print_interrupted(run: Run) -> None:
    """Prints where the checkpoint is and how to go on."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"\ninterrupted after {run.model.num_timesteps:,} steps\n"
        f"  checkpoint      {run.directory / LAST}\n"
        f"  continue with   {command('train.py', run.agent, '--resume', run.directory)}",
        markup=False,
    )


def _program(name: str) -> str:
    """Returns a program of this interpreter's environment, by path if it lies under here."""
    program = Path(sys.executable).parent / name
    below = program.is_relative_to(Path.cwd())
    return os.path.relpath(program) if below and program.exists() else name
