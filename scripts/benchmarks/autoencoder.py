"""A deep autoencoder on Fashion-MNIST: how soon K-FAC is where AdamW is after the whole time."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from classification import data, models
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report import Row, show
from npg.optim import create, train_step

BATCH = 500
# Seconds of one optimizer before the other's turn: a busy moment of the machine hits both.
TURN = 1.0
LIKELIHOOD = "bernoulli"
# AdamW with the best rate of a sweep, falling linearly to zero; K-FAC as it comes.
ADAMW_RATE = 3e-3


@dataclass
class Training:
    """One optimizer's run.

    Attributes:
        name: Of the optimizer.
        options: Its arguments.
        decays: Whether its rate falls linearly to zero over the budget.
        curve: (seconds of training, steps, loss on the whole training set).
    """

    name: str
    options: dict[str, Any]
    decays: bool
    images: Tensor
    budget: float
    seconds: float = 0.0
    steps: int = 0
    curve: list[tuple[float, int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model, _ = models.build("autoencoder", 28, 10)
        self.optimizer = create(self.name, self.model, **self.options)
        self.rate = self.optimizer.param_groups[0]["lr"]
        self.batches = batches(self.images)

    def turn(self) -> None:
        """Trains for one turn, then measures; only the training counts."""
        stop = min(self.seconds + TURN, self.budget)
        while self.seconds < stop:
            batch = next(self.batches)
            start = time.perf_counter()
            if self.decays:
                self.optimizer.param_groups[0]["lr"] = self.rate * (1 - self.seconds / self.budget)
            train_step(self.optimizer, lambda b=batch: self.objective(b))
            self.seconds += time.perf_counter() - start
            self.steps += 1
        with torch.no_grad():
            parts = self.images.split(5000)
            losses = [float(self.objective(part)[0]) * len(part) for part in parts]
        self.curve.append((self.seconds, self.steps, sum(losses) / len(self.images)))

    def objective(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy summed over pixels, and the logits."""
        logits = self.model(images)
        loss = F.binary_cross_entropy_with_logits(logits, images, reduction="sum") / len(images)
        return loss, logits


def batches(images: Tensor) -> Iterator[Tensor]:
    """Yields minibatches for ever, in the same order for everybody."""
    generator = torch.Generator().manual_seed(0)
    while True:
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            yield images[rows]


def take_turns(*trainings: Training) -> None:
    """Trains all of them until their budgets are spent."""
    while any(training.seconds < training.budget for training in trainings):
        for training in trainings:
            training.turn()
            at, steps, loss = training.curve[-1]
            print(f"{training.name} {at:.0f} s, {steps} steps: {loss:.2f}", flush=True)


def load(data_dir: Path) -> Tensor:
    """Fashion-MNIST's training images [60000, 784]."""
    return data.load("fashion-mnist", data_dir, 0, torch.device("cpu")).train.images.flatten(1)


def run(seconds: float, data_dir: Path, command: str) -> None:
    """Trains both in turns, and writes the table."""
    images = load(data_dir)
    adamw = Training("adamw", {"lr": ADAMW_RATE}, True, images, seconds)
    kfac = Training("kfac", {"likelihood": LIKELIHOOD}, False, images, seconds)
    take_turns(adamw, kfac)
    goal, reached = adamw.curve[-1][2], kfac.curve[-1][2]
    soon = [(at, steps) for at, steps, loss in kfac.curve if loss <= goal]
    at, steps = soon[0] if soon else (float("inf"), 0)
    rows = [
        Row(
            f"K-FAC until AdamW's loss after {seconds:.0f} s, share of the time",
            f"{at:.1f} s, {steps} steps",
            f"{goal:.2f} after {seconds:.0f} s, {adamw.steps} steps",
            at / seconds,
            "<= 0.33",
        ),
        Row(
            f"K-FAC's loss after {seconds:.0f} s",
            f"{reached:.2f}, {kfac.steps} steps",
            f"AdamW {goal:.2f}",
            reached,
            "<= 211",
        ),
    ]
    show("Autoencoder on Fashion-MNIST", rows, command)
