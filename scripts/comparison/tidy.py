"""All numbers of a comparison as one CSV file in tidy form."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path

from common.files import replacing

from comparison.results import Results, Run

CSV_COLUMNS = ("name", "task", "seed", "rate", "status", "quantity", "steps", "seconds", "value")


def write_csv(results: Results, path: Path) -> None:
    """Writes all numbers in tidy form: one row per run, quantity and point.

    A run without numbers has one row, without quantity, so that none is lost.

    Args:
        results: What to write.
        path: The file.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for run in results.runs:
            rate = "" if run.rate is None else run.rate
            about = (run.name, run.task, run.seed, rate, run.status)
            rows = list(_quantities(run, results.kind)) or [("", "", "", "")]
            writer.writerows([*about, *row] for row in rows)


def _quantities(run: Run, kind: str) -> Iterator[tuple[object, ...]]:
    """The rows of a run: quantity, steps, seconds, value."""
    end = run.steps, run.seconds
    agent = kind == "agent"
    curve = "training_return" if agent else "training_loss"
    yield from ((curve, *point) for point in run.curve)
    for steps, seconds, loss, metric in run.evaluations:
        yield "test_loss", steps, seconds, loss
        yield f"test_{run.metric}", steps, seconds, metric
    yield from (("final_return" if agent else run.metric, *end, value) for value in run.final)
    for name in ("cpu_seconds", "step_seconds", "peak_memory_mb", "final_loss"):
        if math.isfinite(getattr(run, name)):
            yield name, *end, getattr(run, name)
    for name, points in run.diagnostics.items():
        if isinstance(points, list):
            yield from ((name, steps, "", value) for steps, value in points)
