"""Runs on the machines of a Ray cluster, whose files come back as bytes: no disk is shared."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from common import ROOT
from common.failures import TRAINING, Failure
from common.files import replacing
from ray.exceptions import RayError, RuntimeEnvSetupError

from comparison.backends.address import check_reachable
from comparison.backends.backend import Ending
from comparison.backends.order import Order
from comparison.backends.source import stage
from comparison.backends.worker import Seen, Worker
from comparison.job import Job
from npg.errors import ConfigurationError

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_ANSWER = 2.0
TRIES = 3  # of a run whose workers are lost
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what is coming; else a warning says that it is
}


@contextmanager
def connected(address: str | None, at_once: int) -> Iterator["Cluster"]:
    """Joins a cluster, or starts one on this machine, and leaves or stops it at the end.

    Args:
        address: "auto", HOST:PORT, ray://HOST:PORT; None starts one.
        at_once: Runs at a time, at most.

    Yields:
        The cluster.

    Raises:
        ConfigurationError: If there is none at that address.
    """
    os.environ.update(ENVIRONMENT)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        print("note: a Ray cluster of this machine starts, and ends with this", file=sys.stderr)
        options["include_dashboard"] = False
    elif address != "auto":
        check_reachable(address)
        # Else Ray tries for a quarter of an hour to talk to what is no head of a cluster.
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
    with tempfile.TemporaryDirectory() as directory:
        stage(Path(directory))
        # PYTHONPATH is relative to where Ray unpacks the directory, and starts its workers.
        environment = {"working_dir": directory, "env_vars": {"PYTHONPATH": "scripts"}}
        try:
            ray.init(address or "local", runtime_env=environment, **options)
        except (RayError, OSError, RuntimeError, ValueError, AssertionError) as error:
            where = "on this machine" if address is None else f"at {address}"
            raise ConfigurationError(
                f"no Ray cluster can be had {where} ({_first_line(error)}): see `ray status` there"
            ) from error
        try:
            yield Cluster(at_once)
        finally:
            ray.shutdown()


class Cluster:
    """A Ray cluster that has been joined.

    Args:
        at_once: Runs at a time, at most.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._make_worker = ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")(
            Worker
        )
        cores = int(ray.cluster_resources().get("CPU", 0))
        if cores < at_once:
            print(f"note: the cluster makes {cores} runs at a time as it is", file=sys.stderr)

    def start(self, job: Job) -> "ClusterRun":
        """Starts a run as soon as a machine has a core for it."""
        return ClusterRun(job, self)

    def worker(self, job: Job) -> Any:
        """Returns an actor that makes a run."""
        here = Path.cwd()
        return self._make_worker.remote(
            Order(
                job.command,
                sys.executable,
                str(ROOT),
                str(job.directory),
                str(here.relative_to(ROOT)) if here.is_relative_to(ROOT) else ".",
                {name: Path(name).read_bytes() for name in job.inputs},
            )
        )

    def machine(self, seen: Seen) -> dict[str, Any]:
        """Returns a machine with the runs at a time that Ray allows on it."""
        nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
        allowed = int(nodes.get(seen.node, {}).get("CPU", self._at_once))
        return {**seen.machine, "at_once": min(self._at_once, allowed)}


class ClusterRun:
    """A run on a machine of a cluster; see :class:`comparison.backends.backend.Run`.

    One whose worker is lost, with its machine or without, is made again elsewhere.
    """

    def __init__(self, job: Job, cluster: Cluster) -> None:
        self.machine: Mapping[str, Any] = {}
        self._job = job
        self._cluster = cluster
        self._tries = 0
        self._start()

    def ending(self) -> Ending | None:
        """Returns how it ended; None while it runs or waits for a machine."""
        if time.monotonic() < self._next_look:
            return None
        try:
            if not ray.wait([self._answer], timeout=0)[0]:
                return None
            seen = ray.get(self._answer)
        except RayError as error:
            return self._lost(error)
        except ConnectionError as error:
            raise Failure(
                f"the Ray cluster is gone ({_first_line(error)}): the same command goes on with "
                "what is finished",
                TRAINING,
            ) from error
        self._take(seen)
        if seen.exit_code is None:
            self._ask()
            return None
        ray.kill(self._worker)
        return Ending(seen.exit_code)

    def interrupt(self) -> None:
        """Asks it to end, with all that it started."""
        with suppress(RayError, ConnectionError):
            if self.machine:  # else it still waits for one
                self._worker.interrupt.remote()

    def end(self, deadline: float) -> None:
        """Ends it by force at a time."""
        with suppress(RayError, ConnectionError):
            if self.machine:
                seconds = max(deadline - time.monotonic(), 0)
                answer = self._worker.end.remote(seconds)
                self._take(ray.get(answer, timeout=seconds + SECONDS_TO_ANSWER))
        with suppress(RayError, ConnectionError):
            ray.kill(self._worker)

    def _start(self) -> None:
        self._tries += 1
        self._worker = self._cluster.worker(self._job)
        self._ask()

    def _ask(self) -> None:
        self._answer = self._worker.look.remote()
        self._next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS

    def _take(self, seen: Seen) -> None:
        """Writes what a look has shown."""
        self.machine = self.machine or self._cluster.machine(seen)
        for name, content in seen.files.items():
            with replacing(self._job.directory / name) as temporary:
                temporary.write_bytes(content)

    def _lost(self, error: RayError) -> Ending | None:
        """Makes the run again, if it was not too often."""
        with suppress(RayError, ConnectionError):
            ray.kill(self._worker)  # it may be out of reach only
        if self._tries == TRIES or isinstance(error, RuntimeEnvSetupError):
            return Ending(None, f"its worker was lost {self._tries} times; the last time: {error}")
        print(
            f"note: {self._job.name} is made again, its worker was lost: {_first_line(error)}",
            file=sys.stderr,
        )
        self.machine = {}
        for path in self._job.directory.iterdir():
            path.unlink()
        self._start()
        return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
