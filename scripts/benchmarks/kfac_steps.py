"""What a K-FAC step adds to one forward and backward pass, in the plain training loop."""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from classification import models
from classification.data import Samples
from torch import nn

from benchmarks.report import Row, interleaved, median_ratio, show
from npg.optim import create

BATCH = 256
CLASSES = 10
IMAGE_SIZE = 28
# Statistics and inverses come at intervals: a figure is the mean of one whole cycle.
CYCLE = 10

EVERY_TEN = {"statistics_interval": 10, "inverse_interval": 10}
SAMPLED_EACH = {"statistics_interval": 1, "inverse_interval": 10}
NARROW = {"inverse_dtype": torch.bfloat16}
# (model, optimizer, options, what they are, target)
CASES: list[tuple[models.ModelName, str, dict[str, Any], str, str]] = [
    ("mlp", "kfac", EVERY_TEN, "statistics and inverses every 10", "<= 1.9"),
    ("cnn", "kfac", EVERY_TEN, "statistics and inverses every 10", "<= 0.8"),
    ("mlp", "kfac", SAMPLED_EACH, "sampled statistics every step, inverses every 10", "<= 3"),
    ("cnn", "kfac", SAMPLED_EACH, "sampled statistics every step, inverses every 10", ""),
    ("mlp", "kfac", {**EVERY_TEN, **NARROW}, "both every 10, inverses in bfloat16", "<= 1.9"),
    ("cnn", "kfac", {**EVERY_TEN, **NARROW}, "both every 10, inverses in bfloat16", "<= 0.8"),
    ("mlp", "kfac", {**SAMPLED_EACH, **NARROW}, "statistics every step, bfloat16", "<= 3"),
    ("cnn", "kfac", {**SAMPLED_EACH, **NARROW}, "statistics every step, bfloat16", ""),
    ("mlp", "ekfac", EVERY_TEN, "statistics and bases every 10", ""),
    ("cnn", "ekfac", EVERY_TEN, "statistics and bases every 10", ""),
    ("mlp", "adamw", {}, "", ""),
    ("cnn", "adamw", {}, "", ""),
    ("mlp", "sgd", {}, "", ""),
    ("cnn", "sgd", {}, "", ""),
]


def run(rounds: int, command: str) -> None:
    """Alternates cycles of steps with cycles of bare passes."""
    rows = []
    for name, optimizer, options, what, target in CASES:
        torch.manual_seed(0)
        model, task = models.build(name, IMAGE_SIZE, CLASSES)
        batch = Samples(
            torch.randn(BATCH, 1, IMAGE_SIZE, IMAGE_SIZE),
            torch.rand(BATCH, 1, IMAGE_SIZE, IMAGE_SIZE),
            torch.randint(CLASSES, (BATCH,)),
        )
        if optimizer in ("kfac", "ekfac"):
            options = {"likelihood": task.likelihood, **options}
        chosen = create(optimizer, model, lr=1e-6, **options)  # the work is the same, it stays put

        bare, stepped = interleaved(
            [
                lambda m=model, t=task, b=batch: cycle(m, t, b, None),
                lambda m=model, t=task, b=batch, o=chosen: cycle(m, t, b, o.step),
            ],
            max(rounds, 5),
        )
        added = [max(s - b, 0.0) for s, b in zip(stepped, bare, strict=True)]
        rows.append(
            Row(
                f"{name}, {optimizer}" + (f", {what}" if what else ""),
                f"adds {median(added) / CYCLE * 1e3:.2f} ms",
                f"forward + backward {median(bare) / CYCLE * 1e3:.2f} ms",
                median_ratio(added, bare),
                target,
            )
        )
    show("K-FAC step", rows, command)


def cycle(
    model: nn.Module, task: models.Task, batch: Samples, step: Callable[[], object] | None
) -> None:
    """Runs so many passes, each with a step unless there is none."""
    model.train(step is not None)  # in evaluation mode nobody listens: the bare cost
    for _ in range(CYCLE):
        model.zero_grad()
        task.loss(model(batch.inputs), batch).backward()
        if step is not None:
            step()
