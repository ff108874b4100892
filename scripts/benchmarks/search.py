"""Searches without a derivative: their steps against what they cannot do without."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from classification import data, models
from classification.data import Samples
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from benchmarks import search_memory
from benchmarks.report import Row, interleaved, median_ratio, show
from npg.linalg import split
from npg.optim import EvolutionStrategies, MLEGuidedSearch
from npg.optim.candidates import batched
from npg.optim.objective import Objective

CANDIDATES = 4
# (images, target)
BATCHES = ((256, "<= 2.6"), (8192, "<= 1.3"))
POPULATION, OBSERVATIONS = 64, 16
SIGMA, RATE = 0.05, 0.02


def run(rounds: int, data_dir: Path, command: str) -> None:
    """Prints and records all tables of the searches.

    Args:
        rounds: Of each comparison, interleaved.
        data_dir: Where Fashion-MNIST is.
        command: That asked for it.
    """
    rows = [*guided(rounds, data_dir), *evolution(rounds), *search_memory.rows()]
    show("Searches without a derivative", rows, command)


def guided(rounds: int, data_dir: Path) -> list[Row]:
    """A step of guided search against its forward passes and its one backward pass."""
    samples = data.load("fashion-mnist", data_dir, 0, torch.device("cpu")).train
    rows = []
    for size, target in BATCHES:
        batch = samples[:size]
        step, least = _guided_step(batch), _least(batch)
        times = interleaved([step, least], rounds * (10 if size < 1000 else 2))
        rows.append(
            Row(
                f"guided search, {CANDIDATES} candidates, Fashion-MNIST MLP, batch {size:,}",
                f"{median(times[0]) * 1e3:.1f} ms",
                f"{CANDIDATES} forward + 1 forward and backward {median(times[1]) * 1e3:.1f} ms",
                median_ratio(*times),
                target,
            )
        )
    return rows


def _guided_step(batch: Samples) -> Callable[[], object]:
    model, task = models.build("mlp", 28, 10)
    optimizer = MLEGuidedSearch(model, lr=1e-3, candidates=CANDIDATES)

    def closure() -> tuple[Tensor, Tensor]:
        loss = task.loss(model(batch.inputs), batch)
        return loss, loss.detach()  # no two candidates are equal: all of their noise is needed

    return lambda: optimizer.step(closure)


def _least(batch: Samples) -> Callable[[], object]:
    model, task = models.build("mlp", 28, 10)

    def passes() -> None:
        task.loss(model(batch.inputs), batch).backward()
        model.zero_grad()
        with torch.no_grad():
            for _ in range(CANDIDATES):
                task.loss(model(batch.inputs), batch)

    return passes


def policy() -> nn.Module:
    """A policy network as of HalfCheetah: 17 observations, 6 actions."""
    return nn.Sequential(
        nn.Linear(17, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 6)
    )


def evolution(rounds: int) -> list[Row]:
    """Evolution strategies by vmap against one functional call a candidate.

    Args:
        rounds: Of each comparison.

    Returns:
        The evaluation of a population that is there, and a whole step with drawing and update.
    """
    observations, targets = torch.randn(OBSERVATIONS, 17), torch.randn(OBSERVATIONS, 6)
    model, other = policy(), policy()
    optimizer = EvolutionStrategies(model, RATE, candidates=POPULATION, sigma=SIGMA)

    def closure() -> Tensor:
        return F.mse_loss(model(observations), targets)

    objective = Objective(optimizer, closure)
    rows = optimizer.ask()

    def one_by_one(rows: Tensor) -> Tensor:
        """Every candidate's objective, by its own call."""
        parameters = dict(other.named_parameters())
        objectives = []
        for row in rows:
            values = dict(zip(parameters, split(row, list(parameters.values())), strict=True))
            output = torch.func.functional_call(other, values, (observations,))
            objectives.append(F.mse_loss(output, targets))
        return torch.stack(objectives)

    @torch.no_grad()
    def loop() -> None:
        parameters = list(other.parameters())
        start = parameters_to_vector(parameters)
        noise = torch.randn(POPULATION // 2, len(start))
        signed = torch.stack([noise, -noise], dim=1).flatten(0, 1)
        objectives = one_by_one(start + SIGMA * signed)
        ranks = objectives.argsort().argsort() / (POPULATION - 1) - 0.5
        start -= RATE / (POPULATION * SIGMA) * (ranks @ signed)
        vector_to_parameters(start, parameters)

    compared = [
        ("their objectives", lambda: batched(objective, rows), lambda: one_by_one(rows), ">= 5"),
        ("a whole step", lambda: optimizer.step(closure), loop, ""),
    ]
    found = []
    for what, ours, theirs, target in compared:
        with torch.no_grad():
            times = interleaved([ours, theirs], rounds * 10)
        found.append(
            Row(
                f"evolution strategies, {POPULATION} candidates of a 64-64 policy, {OBSERVATIONS} "
                f"observations, {what}",
                f"{median(times[0]) * 1e3:.1f} ms",
                f"functional_call, one after another {median(times[1]) * 1e3:.1f} ms",
                1 / median_ratio(*times),
                target,
            )
        )
    return found
