"""What a comparison of optimizers found, as a table on the terminal."""

import math
from collections.abc import Sequence
from statistics import fmean, median, stdev
from types import SimpleNamespace

from rich.console import Console
from rich.table import Table

from comparison import rates
from comparison.job import Job

NOTE = (
    "rate: that of the lowest loss on the training set at the end, the mean over seeds; * it is "
    "the first or last one tried. ±: deviation over seeds. spread: highest such mean over the "
    "lowest, of the rates that got through. ms: of a step, median. MB: most in memory "
    "during steps, beyond libraries and data. failed: diverged and too slow ones included."
)


def show(jobs: Sequence[Job], console: Console) -> None:
    """Prints a table for every task, the lowest training loss first.

    Args:
        jobs: Runs, of which those that have ended count.
        console: Where to.
    """
    runs = [SimpleNamespace(**result) for job in jobs if (result := job.result())]
    for task in dict.fromkeys(run.task for run in runs):
        here = [run for run in runs if run.task == task]
        names = dict.fromkeys(run.name for run in here)
        metric = next((run.metric for run in here if run.status == "finished"), "metric")
        table = Table(title=task, title_justify="left", box=None, padding=(0, 1, 0, 0))
        table.add_column("optimizer", no_wrap=True)
        for column in ("rate", "loss", "spread", metric.replace("_", " "), "ms", "MB", "failed"):
            table.add_column(column, justify="right", no_wrap=True)
        for _, cells in sorted(_row([run for run in here if run.name == name]) for name in names):
            table.add_row(*cells)
        console.print(table)
    if runs:
        console.print(NOTE)


def _row(runs: Sequence[SimpleNamespace]) -> tuple[float, list[str]]:
    """Returns the loss to sort by, and the cells, of an optimizer's runs on a task."""
    losses, best = rates.final_losses(runs), rates.at_best(runs)
    failed = sum(run.status == "failed" for run in runs)
    failures = f"{failed} of {len(runs)}" if failed else "–"
    if not best:
        return math.inf, [runs[0].name, *["–"] * 6, failures]
    finite = [loss for loss in losses.values() if math.isfinite(loss)]
    rate = best[0].rate
    edge = "*" if len(losses) > 1 and rate in (min(losses), max(losses)) else ""
    memory = [run.peak_memory_mb for run in best if run.peak_memory_mb is not None]
    cells = [
        best[0].name,
        f"{rate:g}{edge}",
        _spread([run.final_loss for run in best]),
        f"{max(finite) / min(finite):.3g}" if min(finite) > 0 else "–",
        _spread([fmean(run.final) for run in best]),
        f"{1e3 * median(run.step_seconds for run in best):.3g}",
        f"{fmean(memory):.0f}" if memory else "–",
        failures,
    ]
    return min(finite), cells


def _spread(values: Sequence[float]) -> str:
    deviation = f"±{stdev(values):.1g}" if len(values) > 1 else ""
    return f"{fmean(values):.3g}{deviation}"
