"""Runs in processes of their own: at most so many at once, each on one thread."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from common.interrupts import Interrupts

from comparison import files
from comparison.job import Job
from comparison.process import PARENT
from comparison.table import LiveTable

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
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
    at_once: int,
    table: LiveTable,
    retry_failed: bool = False,
) -> Outcome:
    """Makes the runs that have no result yet.

    A run that fails is recorded as failed, and the others go on. On Ctrl-C or SIGTERM the running
    ones end and leave nothing; what has finished stays. The same call later makes what is missing.
    The directory has to be locked: :func:`comparison.session.compare` does that, and all around it.

    Args:
        jobs: The runs.
        at_once: Processes at a time.
        table: Shown meanwhile.
        retry_failed: Makes runs again that failed earlier; else they stay as they are.

    Returns:
        How it ended.
    """
    running: dict[Job, subprocess.Popen[bytes]] = {}
    with Interrupts() as interrupts, table:
        waiting = []
        for job in reversed(jobs):
            if _has_ended(job, retry_failed):
                table.ended(job, earlier=True)
            else:
                waiting.append(job)
        try:
            while (waiting or running) and interrupts.received is None:
                while waiting and len(running) < at_once:
                    job = waiting.pop()
                    running[job] = _start(job)
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for job in [job for job, process in running.items() if process.poll() is not None]:
                    _record(job, running.pop(job).returncode)
                    table.ended(job)
                table.show(set(running))
        finally:
            _end(running)
            for job in running:
                table.ended(job)
            table.show(set())
    return Outcome([job.name for job in jobs if _status(job) == "failed"], interrupts.received)


def _status(job: Job) -> str | None:
    result = job.result()
    return None if result is None else result.get("status")


def _has_ended(job: Job, retry_failed: bool) -> bool:
    status = _status(job)
    return status == "finished" or (status == "failed" and not retry_failed)


def _start(job: Job) -> subprocess.Popen[bytes]:
    """Starts a process; what a killed one left behind goes."""
    shutil.rmtree(job.directory, ignore_errors=True)
    job.directory.mkdir(parents=True)
    environment = os.environ | ONE_THREAD | {PARENT: str(os.getpid())}
    with open(job.directory / files.LOG, "wb") as log:
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends the others
        )


def _record(job: Job, exit_code: int) -> None:
    """Writes result.json for a process that did not."""
    log = job.directory / files.LOG
    lines = log.read_text(errors="replace").rstrip().splitlines()
    if not lines:
        log.unlink()
    if _has_ended(job, retry_failed=False):
        return
    how = f"ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit {exit_code}"
    progress = job.progress()
    files.write(
        job.directory / files.RESULT,
        {
            **job.about,
            "status": "failed",
            "error": "\n".join(lines[-LAST_LINES:]) or f"the process said nothing ({how})",
            "exit_code": exit_code,
            "steps": progress.get("steps", 0),
            "seconds": progress.get("seconds", 0.0),
        },
    )


def _end(running: Mapping[Job, subprocess.Popen[bytes]]) -> None:
    """Ends processes and all that they started, and removes what they had not finished."""
    for process in running.values():
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + SECONDS_TO_END
    for job, process in running.items():
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0))
        _signal(process, signal.SIGKILL)
        process.wait()
        if not _has_ended(job, retry_failed=False):
            shutil.rmtree(job.directory, ignore_errors=True)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
