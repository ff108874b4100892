"""A comparison from its runs to its page, of agents and of optimizers alike."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.lock import locked
from common.report import command, print_places

from comparison import backends, files, record
from comparison.execution_options import Execution
from comparison.job import Job
from comparison.runner import run_all
from comparison.table import LiveTable
from npg.errors import ConfigurationError


def compare(
    jobs: Sequence[Job],
    directory: Path,
    kind: str,
    execution: Execution,
    settings: Mapping[str, Any],
    score: str,
    refused: Sequence[Mapping[str, str]] = (),
    for_page: Mapping[str, Any] | None = None,
) -> int:
    """Makes the runs that are missing, and the page of all.

    Args:
        jobs: The runs.
        directory: Of the comparison; made if it is not there, continued if it is.
        kind: "agent" or "optimizer".
        execution: Where the runs are made, and how many at a time.
        settings: What all runs share, and what a continued comparison may not change.
        score: What the table calls the runs' score.
        refused: Name, task and reason of what does not apply and is not run.
        for_page: What the page is told besides; it may change when a comparison is continued.

    Returns:
        The exit code: 0, or 1 if a run failed, or 128 + n after signal n.

    Raises:
        ConfigurationError: If another comparison works in the directory, or one with other
            settings is kept there, or the backend cannot be had.
    """
    again = command("compare.py", *sys.argv[1:])
    check_page()
    opened = backends.opened(execution)
    with locked(directory):
        planned = [job.name for job in jobs]
        record.begin(directory, kind, again, execution, settings, planned, refused, for_page)
        table = LiveTable(jobs, f"{len(jobs)} runs, {execution.jobs} at a time", score)
        with opened as backend:  # a cluster takes long to start, and ends before the page is drawn
            outcome = run_all(jobs, backend, execution.jobs, table, execution.retry_failed)
        places: dict[str, object] = {
            "report": write_page(directory),
            "runs": directory / files.RUNS,
        }
    if outcome.failed:
        places["failed"] = ", ".join(outcome.failed)
        places["try them again"] = f"{again} --retry-failed"
    if outcome.interrupted is not None:
        places["continue with"] = again
    print_places("interrupted" if outcome.interrupted else "compared", places)
    return outcome.exit_code


def write_page(directory: Path) -> Path:
    """Writes the page of a comparison from the runs that are there; returns its file."""
    from comparison import page, results

    return page.write(results.load(directory), directory)


def check_page() -> None:
    """Refuses to begin where the page could not be written at the end.

    Raises:
        ConfigurationError: If a package for it is not installed.
    """
    try:
        from comparison import page  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the report cannot be written ({error}): pip install .[compare]"
        ) from error
