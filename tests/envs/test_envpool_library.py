"""Where EnvPool's threads run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from envs import EnvPoolVecEnv

pytest.importorskip("envpool")
TASKS = Path("/proc/self/task")
if not TASKS.exists():
    pytest.skip("threads are looked at as Linux shows them", allow_module_level=True)
MACHINE = set(range(os.cpu_count() or 1))
AVAILABLE = os.sched_getaffinity(0)


def processors_of_new_threads(num_envs: int, num_threads: int | None) -> list[set[int]]:
    """Make environments and list the processors that each of their threads may use."""
    before = set(os.listdir(TASKS))
    venv = EnvPoolVecEnv("CartPole-v1", num_envs, seed=0, num_threads=num_threads)
    venv.reset()
    new = sorted(set(os.listdir(TASKS)) - before, key=int)
    processors = [os.sched_getaffinity(int(task)) for task in new]
    venv.close()
    assert len(processors) >= (num_threads or min(num_envs, len(AVAILABLE)))
    return processors


@pytest.mark.skipif(AVAILABLE != MACHINE or len(MACHINE) == 1, reason="not several, not all")
def test_threads_that_take_the_whole_machine_have_a_processor_each() -> None:
    processors = processors_of_new_threads(2 * len(MACHINE), None)
    assert [one for one in processors if len(one) == 1] == [{i} for i in sorted(MACHINE)]


@pytest.mark.parametrize("more", [-1, 1])
def test_other_numbers_of_threads_are_left_to_the_system(more: int) -> None:
    threads = max(1, len(MACHINE) + more)
    assert all(one == AVAILABLE for one in processors_of_new_threads(threads, threads))


@pytest.mark.skipif(len(AVAILABLE) == 1, reason="there is nothing to leave out")
def test_threads_stay_inside_what_the_process_may_use() -> None:
    allowed = {max(AVAILABLE)}
    os.sched_setaffinity(0, allowed)
    try:
        # As many threads as the machine has processors, all of them on the one that is allowed.
        processors = processors_of_new_threads(len(MACHINE), len(MACHINE))
    finally:
        os.sched_setaffinity(0, AVAILABLE)
    assert all(one == allowed for one in processors)
