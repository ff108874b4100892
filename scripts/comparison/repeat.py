"""Makes runs of a comparison a second time, and says whether their numbers are the same."""

import fnmatch
import random
import shlex
import tempfile
from pathlib import Path

from common.failures import configuration_errors
from rich.console import Console

from comparison import files, results
from comparison.backends.local import Local
from comparison.job import Job, compare_command
from comparison.options import Repeat
from comparison.results import Run
from comparison.runner import run_all
from comparison.table import LiveTable
from npg.errors import ConfigurationError


def run(options: Repeat) -> int:
    """Repeats runs; returns 0 if all are as they were, 1 if not, 128 + n after signal n."""
    with configuration_errors():
        chosen = choose(options)
    with tempfile.TemporaryDirectory() as directory:
        jobs = [_job(run, Path(directory)) for run in chosen]
        table = LiveTable(jobs, f"{len(jobs)} runs once more, {options.jobs} at a time", "return")
        outcome = run_all(jobs, Local(options.jobs), options.jobs, table)
        if outcome.interrupted is not None:
            return outcome.exit_code
        again = {job.name: results.read_run(job.name, job.directory / files.RESULT) for job in jobs}
    console = Console(soft_wrap=True, highlight=False)
    code = 0
    for run in chosen:
        second = again[run.directory]
        if second.finished:
            changed = differences(run, second)
            said = f"not as it was: {', '.join(changed)}" if changed else "the same numbers"
        else:
            changed = [second.error]
            said = f"could not be repeated: {second.error.strip().splitlines()[-1]}"
        console.print(f"{run.directory}: {said}", markup=False)
        code = 1 if changed else code
    return code


def choose(options: Repeat) -> list[Run]:
    """Draws runs that finished.

    Args:
        options: Which comparison, how many, and which names.

    Returns:
        The runs, always the same ones of a comparison.

    Raises:
        ConfigurationError: If the directory has no finished run of agents that matches, or a
            number cannot be used.
    """
    for name in ("runs", "jobs"):
        if getattr(options, name) < 1:
            raise ConfigurationError(f"{name} must be at least 1, got {getattr(options, name)}")
    found = results.load(options.directory)
    if found.kind != "agent":
        raise ConfigurationError(
            f"{options.directory} compares {found.kind}s, whose runs may end by the clock: runs of "
            "agents can be repeated"
        )
    runs = [run for run in found.runs if run.finished]
    runs = [run for run in runs if fnmatch.fnmatchcase(run.directory, options.match)]
    if not runs:
        raise ConfigurationError(
            f"no finished run in {options.directory} is called {options.match!r}: see {files.RUNS}/"
        )
    drawn = random.Random(0).sample(range(len(runs)), min(options.runs, len(runs)))
    return [runs[index] for index in sorted(drawn)]


def differences(first: Run, second: Run) -> list[str]:
    """Names what differs between two finished runs, seconds apart."""
    changed = [f"{k} is set otherwise" for k in _changed(first.arguments, second.arguments)]
    if first.steps != second.steps:
        changed.append(f"{second.steps:,} steps in place of {first.steps:,}")
    returns = [[(steps, value) for steps, _, value in run.curve] for run in (first, second)]
    changed += ["the returns in training"] if returns[0] != returns[1] else []
    # A later version may have more diagnostics, but none may be lost or different.
    known = {key: second.diagnostics.get(key) for key in first.diagnostics}
    changed += [f"the {k}" for k in _changed(first.diagnostics, known)]
    return changed + (["the final returns"] if first.final != second.final else [])


def _changed(first, second) -> list[str]:
    return [key for key in {**first, **second} if first.get(key) != second.get(key)]


def _job(run: Run, directory: Path) -> Job:
    """The run's own command, whose words follow those of the interpreter and the script."""
    words = shlex.split(run.command)[2:]
    place = directory / run.directory
    about = {"name": run.name, "task": run.task, "seed": run.seed, "command": run.command}
    return Job(run.directory, compare_command(*words, "--output", place), place, about)
