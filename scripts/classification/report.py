"""What a run says when it ends."""

from common.report import command, print_places, tensorboard
from common.run_directory import PLOT

from classification.checkpoints import BEST, LAST, existing
from classification.loop import Loop
from classification.session import Run


def print_summary(loop: Loop) -> None:
    """Prints the result and where everything is."""
    run, progress, options = loop.run, loop.run.progress, loop.run.options
    name = run.task.metric.replace("_", " ")
    more = (
        ("--epochs", 2 * options.epochs)
        if options.epochs is not None
        else ("--budget-seconds", 2 * options.budget_seconds)
    )
    print_places(
        f"[bold]{options.optimizer}, {options.model} on {options.data}, seed {options.seed}: "
        f"test {name} [cyan]{loop.evaluation[run.task.metric]:.4f}[/cyan][/bold], "
        f"best {progress.best:.4f}, after {progress.step:,} steps, {progress.seconds:.1f} s",
        {
            "learning curve": run.directory / PLOT,
            "checkpoint": f"{existing(run.directory, BEST)} (the last one: {LAST})",
            "TensorBoard": tensorboard(run.directory),
            "continue with": command("classify.py", "--resume", run.directory, *more),
        },
    )


def print_interrupted(run: Run) -> None:
    """Prints where the checkpoint is and how to go on."""
    print_places(
        f"interrupted after {run.progress.step:,} steps",
        {
            "checkpoint": run.directory / LAST,
            "continue with": command("classify.py", "--resume", run.directory),
        },
    )
