"""Searches without a derivative: their steps against what they cannot do without."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from classification import data, models
from classification.data import Samples
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import search_memory
from benchmarks.report import Row, interleaved, median_ratio, show
from npg.optim import EvolutionStrategies, MLEGuidedSearch

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
    rows = [*guided(rounds, data_dir), evolution(rounds), *search_memory.rows()]
    show("Searches without a derivative", rows, command)


def wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of wrong answers."""
    return (logits.argmax(-1) != labels).float().mean()


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
        logits = model(batch.inputs)
        return task.loss(logits, batch), wrong(logits, batch.labels)

    return lambda: optimizer.step(closure)


def _least(batch: Samples) -> Callable[[], object]:
    model, task = models.build("mlp", 28, 10)

    def passes() -> None:
        task.loss(model(batch.inputs), batch).backward()
        model.zero_grad()
        with torch.no_grad():
            for _ in range(CANDIDATES):
                wrong(model(batch.inputs), batch.labels)

    return passes


def policy() -> nn.Module:
    """A policy network as of HalfCheetah: 17 observations, 6 actions."""
    return nn.Sequential(
        nn.Linear(17, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 6)
    )


def evolution(rounds: int) -> Row:
    """A step of evolution strategies by vmap against one call a candidate."""
    observations, targets = torch.randn(OBSERVATIONS, 17), torch.randn(OBSERVATIONS, 6)
    model, other = policy(), policy()
    optimizer = EvolutionStrategies(model, RATE, candidates=POPULATION, sigma=SIGMA)

    def loop() -> None:
        parameters = dict(other.named_parameters())
        with torch.no_grad():
            noise = {name: torch.randn(POPULATION // 2, *p.shape) for name, p in parameters.items()}
            objectives = torch.stack(
                [
                    F.mse_loss(
                        torch.func.functional_call(
                            other,
                            {n: p + sign * SIGMA * noise[n][k] for n, p in parameters.items()},
                            (observations,),
                        ),
                        targets,
                    )
                    for k in range(POPULATION // 2)
                    for sign in (1, -1)
                ]
            )
            ranks = objectives.argsort().argsort() / (POPULATION - 1) - 0.5
            weights = (ranks[::2] - ranks[1::2]) / (POPULATION * SIGMA)
            for name, parameter in parameters.items():
                gradient = torch.tensordot(weights, noise[name], dims=1)
                parameter.sub_(gradient, alpha=RATE)

    times = interleaved(
        [loop, lambda: optimizer.step(lambda: F.mse_loss(model(observations), targets))],
        rounds * 10,
    )
    return Row(
        f"evolution strategies, {POPULATION} candidates of a 64-64 policy, {OBSERVATIONS} "
        "observations, a whole step",
        f"{median(times[1]) * 1e3:.1f} ms",
        f"functional_call, one after another {median(times[0]) * 1e3:.1f} ms",
        median_ratio(*times),
        ">= 5",
    )
