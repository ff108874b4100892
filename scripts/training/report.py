"""What a run says when it ends."""

from common.report import command, print_places, tensorboard

from training.callbacks import Evaluations
from training.run_directory import BEST, LAST, PLOT
from training.session import Run


def print_summary(run: Run, evaluations: Evaluations, seconds: float) -> None:
    """Prints the result and where everything is."""
    mean, deviation = evaluations.last or (float("nan"), float("nan"))
    print_places(
        f"[bold]{run.agent.upper()} on {run.options.env}, seed {run.options.seed}: "
        f"evaluation [cyan]{mean:,.1f} ± {deviation:,.1f}[/cyan][/bold] "
        f"after {run.model.num_timesteps:,} steps, {seconds:.0f} s",
        {
            "learning curve": run.directory / PLOT,
            "checkpoint": f"{run.directory / BEST} (the last one: {LAST})",
            "TensorBoard": tensorboard(run.directory),
            "replay": command("evaluate.py", run.directory, "--episodes", 20),
        },
    )


def go_on_command(run: Run) -> str:
    """Returns the command that goes on with a run."""
    size = run.ranks.size
    return command("train.py", run.agent, "--resume", run.directory, processes=size)


def print_interrupted(run: Run) -> None:
    """Prints where the checkpoint is and how to go on."""
    print_places(
        f"interrupted after {run.model.num_timesteps:,} steps",
        {
            "checkpoint": run.directory / LAST,
            "continue with": go_on_command(run),
        },
    )
