"""The actors of Ray that make a comparison's runs, one core each."""

import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from comparison.backends.worker import Worker


class Workers:
    """Actors, as many as are needed at a time.

    Args:
        at_once: Runs at a time, at most.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._new = ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")(Worker)
        self._idle: list[tuple[float, Any]] = []  # since when, who

    def take(self) -> Any:
        """Returns an actor that has nothing to do."""
        return self._idle.pop()[1] if self._idle else self._new.remote()

    def give_back(self, worker: Any) -> None:
        """Keeps an actor whose run has ended, since starting one takes seconds."""
        self._idle.append((time.monotonic(), worker))

    def retire(self, after: float) -> None:
        """Ends actors that have had no run for some seconds: others may want their cores."""
        until = time.monotonic() - after
        for since, worker in self._idle:
            if since <= until:
                with suppress(RayError):  # it may be lost
                    ray.kill(worker)
        self._idle = [idle for idle in self._idle if idle[0] > until]

    def allowed_on(self, name: str) -> int:
        """Returns how many runs at a time there are on a machine at most, by Ray's name for it."""
        resources = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
        return min(self._at_once, int(resources.get(name, {}).get("CPU", self._at_once)))
