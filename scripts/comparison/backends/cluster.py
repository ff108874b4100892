"""The Ray cluster whose machines make the runs of a comparison."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from comparison.backends.address import check_reachable
from comparison.backends.cluster_run import ClusterRun, first_line
from comparison.backends.source import stage
from comparison.backends.workers import Workers
from comparison.job import Job
from npg.errors import ConfigurationError

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
        except Exception as error:  # Ray has no common class for what can go wrong here
            where = "on this machine" if address in (None, "auto") else f"at {address}"
            raise ConfigurationError(
                f"no Ray cluster can be had {where} ({first_line(error)}): see what `ray status` "
                "says there, and whether it asks for a token (RAY_AUTH_MODE)"
            ) from error
        try:
            yield Cluster(at_once)
        finally:
            ray.shutdown()


class Cluster:
    """A Ray cluster that has been joined.

    Args:
        at_once: Runs at a time, at most.

    Attributes:
        workers: Who makes the runs.
    """

    def __init__(self, at_once: int) -> None:
        self.workers = Workers(at_once)
        cores = int(ray.cluster_resources().get("CPU", 0))
        if cores < at_once:
            print(f"note: the cluster makes {cores} runs at a time as it is", file=sys.stderr)

    def start(self, job: Job) -> ClusterRun:
        """Starts a run as soon as a machine has a core for it."""
        return ClusterRun(job, self.workers)
