"""A run on a machine of a Ray cluster, whose files come back as bytes: no disk is shared."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from common import ROOT
from common.failures import TRAINING, Failure
from common.files import replacing
from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError

from comparison import files
from comparison.backends.backend import Ending
from comparison.backends.order import Order
from comparison.backends.worker import Seen
from comparison.backends.workers import Workers
from comparison.job import Job

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_ANSWER = 2.0
SECONDS_IDLE = 5.0
TRIES = 3  # of a run whose workers are lost


class ClusterRun:
    """A run on a machine of a cluster; see :class:`comparison.backends.backend.Run`.

    One whose worker is lost, with its machine or without, is made again elsewhere; one that a
    worker cannot start or look at, since the disk is full for instance, has failed.
    """

    def __init__(self, job: Job, workers: Workers) -> None:
        self.machine: Mapping[str, Any] = {}
        self._job = job
        self._workers = workers
        self._tries = 0
        self._placed = False  # on a machine, when it is interrupted
        self._start()

    def ending(self) -> Ending | None:
        """Returns how it ended; None while it runs or waits for a machine."""
        if time.monotonic() < self._next_look:
            return None
        self._workers.retire(SECONDS_IDLE)
        try:
            if not ray.wait([self._answer], timeout=0)[0]:
                return None
            seen = ray.get(self._answer)
        except RayTaskError as error:
            return self._refused(error)
        except RayError as error:
            return self._lost(error)
        except ConnectionError as error:
            raise Failure(
                f"the Ray cluster is gone ({first_line(error)}): the same command goes on with "
                "what is finished",
                TRAINING,
            ) from error
        self._take(seen)
        if seen.exit_code is None:
            self._wait_for(self._worker.look.remote())
            return None
        self._workers.give_back(self._worker)
        return Ending(seen.exit_code)

    def interrupt(self) -> None:
        """Asks it to end, with all that it started."""
        with suppress(RayError, ConnectionError):
            self._placed = bool(self.machine or ray.wait([self._answer], timeout=0)[0])
            if self._placed:
                self._worker.interrupt.remote()

    def end(self, deadline: float) -> None:
        """Ends it by force at a time."""
        with suppress(RayError, ConnectionError):
            if self._placed:
                seconds = max(deadline - time.monotonic(), 0)
                answer = self._worker.end.remote(seconds)
                self._take(ray.get(answer, timeout=seconds + SECONDS_TO_ANSWER))
        with suppress(RayError, ConnectionError):
            ray.kill(self._worker)

    def _start(self) -> None:
        self._tries += 1
        self._worker = self._workers.take()
        self._wait_for(self._worker.start.remote(_order(self._job)))

    def _wait_for(self, answer: Any) -> None:
        self._answer = answer
        self._next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS

    def _take(self, seen: Seen) -> None:
        """Writes what a look has shown."""
        if not self.machine:
            self.machine = {**seen.machine, "at_once": self._workers.allowed_on(seen.node)}
        for name, content in seen.files.items():
            with replacing(self._job.directory / name) as temporary:
                temporary.write_bytes(content)

    def _refused(self, error: RayTaskError) -> Ending:
        """Says what the worker raised, which ends with it."""
        with suppress(RayError, ConnectionError):
            ray.kill(self._worker)
        return Ending(None, f"its worker cannot make it: {str(error).strip().splitlines()[-1]}")

    def _lost(self, error: RayError) -> Ending | None:
        """Makes the run again, if it was not too often."""
        self._workers.retire(after=0)  # those on the same machine are lost, too
        with suppress(RayError, ConnectionError):
            ray.kill(self._worker)  # it may be out of reach only
        if self._tries == TRIES or isinstance(error, RuntimeEnvSetupError):
            return Ending(None, f"its worker was lost {self._tries} times; the last time: {error}")
        print(
            f"note: {self._job.name} is made again, its worker was lost: {first_line(error)}",
            file=sys.stderr,
        )
        self.machine = {}
        files.clear(self._job.directory)
        self._start()
        return None


def first_line(error: BaseException) -> str:
    """Returns what an error says in short."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _order(job: Job) -> Order:
    here = Path.cwd()
    return Order(
        job.command,
        str(ROOT),
        str(here.relative_to(ROOT)) if here.is_relative_to(ROOT) else ".",
        {name: Path(name).read_bytes() for name in job.inputs},
    )
