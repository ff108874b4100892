"""The runs of a comparison: at most so many at once, each recorded however it ends."""

import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from common.interrupts import Interrupts

from comparison import files
from comparison.backends.backend import Backend, Ending, Run
from comparison.job import Job
from comparison.results import FINISHED, is_whole
from comparison.table import LiveTable

SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_TO_END = 5.0
LAST_LINES = 12  # of a crashed run's output


@dataclass(frozen=True)
class Outcome:
    """How a comparison ended.

    Attributes:
        failed: Names of the runs that failed, now or earlier.
        interrupted: The signal that ended it, if one did.
    """

    failed: list[str]
    interrupted: signal.Signals | None

    @property
    def exit_code(self) -> int:
        """0 if everything finished, 1 if a run failed, 128 + n after signal n."""
        if self.interrupted is not None:
            return 128 + self.interrupted
        return 1 if self.failed else 0


def run_all(
    jobs: Sequence[Job],
    backend: Backend,
    at_once: int,
    table: LiveTable,
    retry_failed: bool = False,
) -> Outcome:
    """Makes the runs that have no result yet.

    A run that fails is recorded as failed, and the others go on. A damaged result.json is set
    aside, which is said, and its run made again. On Ctrl-C or SIGTERM the running ones end and
    leave nothing; what has finished stays. The same call later makes what is missing.
    The directory has to be locked: :func:`comparison.session.compare` does that, and all around it.

    Args:
        jobs: The runs.
        backend: Makes them.
        at_once: Runs at a time.
        table: Shown meanwhile.
        retry_failed: Makes runs again that failed earlier; else they stay as they are.

    Returns:
        How it ended.
    """
    running: dict[Job, Run] = {}
    with Interrupts() as interrupts, table:
        waiting = []
        for job in reversed(jobs):
            if _has_ended(job.result(), retry_failed):
                started_on = files.read(job.directory / files.MACHINE)
                if started_on is not None:  # it ended when its comparison had been killed
                    _record(job, Ending(0), started_on)
                table.ended(job, earlier=True)
            else:
                waiting.append(job)
        try:
            while (waiting or running) and interrupts.received is None:
                while waiting and len(running) < at_once:
                    job = waiting.pop()
                    running[job] = _start(job, backend, table)
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for job, run in list(running.items()):
                    ending = run.ending()
                    if ending is not None:
                        _record(job, ending, run.machine)
                        del running[job]
                        table.ended(job)
                table.show(set(running))
        finally:
            _end(running)
            for job in running:
                table.ended(job)
            table.show(set())
    failed = [job.name for job in jobs if (job.result() or {}).get("status") == "failed"]
    return Outcome(failed, interrupts.received)


def _has_ended(result: Mapping[str, Any] | None, retry_failed: bool = False) -> bool:
    if result is None or not is_whole(result):
        return False
    return result["status"] == FINISHED or not retry_failed


def _start(job: Job, backend: Backend, table: LiveTable) -> Run:
    """Starts a run; what a killed one left behind goes."""
    if (job.directory / files.RESULT).exists() and not _has_ended(job.result()):
        kept = files.set_aside(job.directory)
        table.say(f"{job.name} is made again: its {files.RESULT} was damaged; it is kept as {kept}")
    files.clear(job.directory)
    job.directory.mkdir(parents=True, exist_ok=True)
    run = backend.start(job)
    files.write(job.directory / files.MACHINE, run.machine)
    return run


def _record(job: Job, ending: Ending, machine: Mapping[str, Any]) -> None:
    """Completes result.json, or writes it for a run that did not."""
    result = job.result()
    log = job.directory / files.LOG
    lines = log.read_text(errors="replace").rstrip().splitlines() if log.exists() else []
    if not lines:
        log.unlink(missing_ok=True)
    if result is None or not _has_ended(result):
        progress = job.progress()
        result = {
            "status": "failed",
            "error": ending.lost or "\n".join(lines[-LAST_LINES:]) or _in_words(ending),
            "exit_code": ending.exit_code,
            "steps": progress.get("steps", 0),
            "seconds": progress.get("seconds", 0.0),
        }
    _complete(job, result, machine)


def _complete(job: Job, result: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Says where a run was made, and its command in the words of this machine."""
    files.write(job.directory / files.RESULT, {**result, **job.about, "machine": machine})
    (job.directory / files.MACHINE).unlink(missing_ok=True)


def _in_words(ending: Ending) -> str:
    code = ending.exit_code or 0
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
    return f"the process said nothing ({how})"


def _end(running: Mapping[Job, Run]) -> None:
    """Ends runs and all that they started, and removes what they had not finished."""
    for run in running.values():
        run.interrupt()
    deadline = time.monotonic() + SECONDS_TO_END
    for job, run in running.items():
        run.end(deadline)
        result = job.result()
        if result is not None and _has_ended(result):
            _complete(job, result, run.machine)
        else:
            files.clear(job.directory)
            with suppress(OSError):  # something was set aside there
                job.directory.rmdir()
