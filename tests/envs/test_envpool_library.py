"""Where EnvPool's threads run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from envs import EnvPoolVecEnv

pytest.importorskip("envpool")
TASKS = Path("/proc/self/task")
linux_only = pytest.mark.skipif(not TASKS.exists(), reason="threads are looked at as Linux shows")


def processors_of_new_threads(make: Callable[[], object]) -> list[set[int]]:
    """Make something and list the processors that each of its threads may use."""
    before = set(os.listdir(TASKS))
    made = make()
    new = set(os.listdir(TASKS)) - before
    processors = [os.sched_getaffinity(int(task)) for task in sorted(new, key=int)]
    del made
    return processors


def pool_of(num_envs: int, num_threads: int | None = None) -> EnvPoolVecEnv:
    """Make environments with their threads."""
    venv = EnvPoolVecEnv("CartPole-v1", num_envs, seed=0, num_threads=num_threads)
    venv.reset()
    return venv


@linux_only
@pytest.mark.skipif(
    os.sched_getaffinity(0) != set(range(os.cpu_count() or 1)), reason="not the whole machine"
)
def test_threads_that_take_the_whole_machine_have_a_processor_each() -> None:
    machine = os.cpu_count() or 1
    processors = processors_of_new_threads(lambda: pool_of(2 * machine))
    assert [one for one in processors if len(one) == 1] == [{i} for i in range(machine)]


@linux_only
@pytest.mark.parametrize("num_envs", [1, 3])
def test_other_numbers_of_threads_are_left_to_the_system(num_envs: int) -> None:
    threads = 1 if num_envs == 1 else (os.cpu_count() or 1) + 1
    everywhere = os.sched_getaffinity(0)
    for processors in processors_of_new_threads(lambda: pool_of(num_envs, threads)):
        assert processors == everywhere


@linux_only
def test_threads_stay_inside_what_the_process_may_use() -> None:
    everywhere = os.sched_getaffinity(0)
    one = {max(everywhere)}
    os.sched_setaffinity(0, one)
    try:
        assert all(
            processors == one for processors in processors_of_new_threads(lambda: pool_of(4))
        )
    finally:
        os.sched_setaffinity(0, everywhere)
