"""What a second rank is worth: environment steps per second, and what is said between the two."""

import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import torch.distributed
import torch.multiprocessing

from agents import ACKTR, PPO, TRPO
from agents.on_policy import OnPolicy
from benchmarks.report import Row, median_ratio, show
from envs import make
from npg import ranks as between

ENV = "HalfCheetah-v5"
UPDATES = 10  # that are timed, after one


@dataclass(frozen=True)
class Case:
    """An agent, with its environments and steps on one rank and on each of two."""

    name: str
    agent: type[OnPolicy]
    alone: tuple[int, int]
    each: tuple[int, int]
    target: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    backend: Literal["gymnasium", "envpool"] = "gymnasium"  # steps in the rank's thread, or in more
    apart: bool = False  # two processes that know nothing of each other: what the machine gives


CASES = [
    # Twice the environments: what torchrun adds to a run.
    Case("TRPO", TRPO, (8, 256), (8, 256), ">= 1.7", {"critic": "gauss-newton"}),
    Case(
        "TRPO, two processes apart",
        TRPO,
        (8, 256),
        (8, 256),
        "",
        {"critic": "gauss-newton"},
        apart=True,
    ),
    # Its threads take both processors for one rank already.
    Case(
        "TRPO through EnvPool",
        TRPO,
        (8, 256),
        (8, 256),
        settings={"critic": "gauss-newton"},
        backend="envpool",
    ),
    Case("TRPO, critic adam", TRPO, (8, 256), (8, 256), "", {"critic": "adam"}),
    Case("ACKTR", ACKTR, (8, 64), (8, 64)),
    Case("PPO", PPO, (8, 256), (8, 256), "", {"batch_size": 256}),
    # The same environments, shared out: the same updates, sooner.
    Case("TRPO, shared out", TRPO, (8, 256), (4, 256), "", {"critic": "gauss-newton"}),
]
IN_A_ROW = 20
SIZES = (1, 1_000, 10_000, 100_000, 1_000_000)


def run(rounds: int, command: str) -> None:
    """Trains on one rank and on two, in turn, each in new processes of one thread."""
    rows = []
    for case in CASES:
        alone, both, said = [], [], (0, 0)
        for _ in range(rounds):
            alone.append(_started(_train, 1, case)[0])
            seconds, *said = _started(_train, 2, case)
            both.append(seconds)
        per_update = [a * b * ranks for (a, b), ranks in ((case.alone, 1), (case.each, 2))]
        speeds = [
            [UPDATES * steps / s for s in times]
            for steps, times in zip(per_update, (alone, both), strict=True)
        ]
        calls, numbers = (n / UPDATES for n in said)
        rows.append(
            Row(
                f"{case.name}, {ENV}, 2 ranks of {case.each[0]} × {case.each[1]}; per update "
                f"{calls:.0f} reductions of {numbers / max(calls, 1):,.0f} numbers",
                f"{median(speeds[1]):,.0f} steps/s",
                f"1 rank of {case.alone[0]} × {case.alone[1]}: {median(speeds[0]):,.0f} steps/s",
                median_ratio(speeds[1], speeds[0]),
                case.target,
            )
        )
    times = _started(_reduce, 2, None)
    rows += [
        Row(
            f"sum of {size:,} numbers over 2 ranks of one machine",
            f"{1e6 * seconds:,.0f} µs",
            f"of {SIZES[0]}: {1e6 * times[0]:,.0f} µs",
            seconds / times[0],
        )
        for size, seconds in zip(SIZES, times, strict=True)
    ]
    show("Ranks", rows, command)


def _started(work: Any, size: int, case: Case | None) -> list[float]:
    """What ``work`` finds on rank 0 of so many."""
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as directory:  # a free port may be taken before it is used
        meeting = (Path(directory) / "meeting").as_uri()
        torch.multiprocessing.spawn(_joined, (size, meeting, work, case, answers), nprocs=size)
    found: list[float] = answers.get()
    return found


def _joined(rank: int, size: int, meeting: str, work: Any, case: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    if size > 1:
        torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=size)
    if case is not None and case.apart:
        with between.alone():
            found = work(rank, 1, case)
    else:
        found = work(rank, size, case)
    if rank == 0:
        answers.put(found)
    if size > 1:
        torch.distributed.barrier()  # gloo's threads do not bear that the other side goes first
        torch.distributed.destroy_process_group()


def _train(rank: int, size: int, case: Case) -> list[float]:
    """Seconds of the updates, and how many reductions of how many numbers they needed."""
    num_envs, n_steps = case.alone if size == 1 else case.each
    env = make(ENV, num_envs=num_envs, seed=rank * num_envs, backend=case.backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of units that are the same on both sides
        model = case.agent("MlpPolicy", env, n_steps=n_steps, seed=0, device="cpu", **case.settings)
    steps = num_envs * n_steps * size
    model.learn(steps)
    said = [0, 0]
    summed = between.summed

    def counting(tensor: torch.Tensor) -> torch.Tensor:
        said[0] += 1
        said[1] += tensor.numel()
        return summed(tensor)

    between.summed = counting
    started = time.perf_counter()
    model.learn(UPDATES * steps, reset_num_timesteps=False)
    return [time.perf_counter() - started, *said]


def _reduce(rank: int, size: int, case: None) -> list[float]:
    """Median seconds of a sum of each size, of many in a row."""
    medians = []
    for numel in SIZES:
        tensor, times = torch.zeros(numel), []
        for _ in range(11):
            started = time.perf_counter()
            for _ in range(IN_A_ROW):
                between.summed(tensor)
            times.append((time.perf_counter() - started) / IN_A_ROW)
        medians.append(median(times))
    return medians
