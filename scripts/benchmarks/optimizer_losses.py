"""The training loss that every optimizer reaches in 300 steps, where nothing was tuned."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import pytorch_optimizer as peers
import torch
from classification import data, models
from classification.data import Samples
from rich.progress import track
from torch import nn
from torch.nn import functional as F

from benchmarks.report import Row, show
from npg import optim

BATCH = 256
STEPS = 300
SEEDS = range(3)
# Rates for AdamW where its default is compared with the best of a sweep.
ADAMW_RATES = (1e-3, 3e-3, 1e-2)

SOAP, ADAMW = "pytorch_optimizer SOAP", "torch AdamW"

Make = Callable[[nn.Module], torch.optim.Optimizer]


def group_norm_network(image_size: int, classes: int) -> nn.Module:
    """Three convolutions with group norm, at half and quarter resolution."""
    quarter = -(-image_size // 4)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 2), (16, 32, 2), (32, 32, 1)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
            nn.GroupNorm(4, outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * quarter**2, classes))


@dataclass(frozen=True)
class Problem:
    """A data set, and the model that learns it.

    Attributes:
        title: For the table.
        data: Name of the data set.
        build: (image size, classes) → the model.
        targets: Of ours, by name.
    """

    title: str
    data: data.DataName
    build: Callable[[int, int], nn.Module]
    targets: dict[str, str]


def _registered(name: models.ModelName) -> Callable[[int, int], nn.Module]:
    return lambda image_size, classes: models.build(name, image_size, classes)[0]


# The defaults of `npg.optim.create` were chosen on the first two.
TUNED_ON = [
    Problem("mlp", "fashion-mnist", _registered("mlp"), {"shampoo": "<= 0.24", "soap": "<= 0.24"}),
    Problem("cnn", "fashion-mnist", _registered("cnn"), {"shampoo": "<= 0.28", "soap": "<= 0.28"}),
]
HELD_OUT = [
    Problem("digits, transformer", "digits", _registered("transformer"), {}),
    Problem("cnn with group norm", "fashion-mnist", group_norm_network, {}),
]
OURS: dict[str, Make] = {
    "shampoo": lambda model: optim.create("shampoo", model),
    "soap": lambda model: optim.create("soap", model),
}
# The peer's rate and averages, for a comparison of the methods alone.
ALIKE: dict[str, Make] = {
    "soap at the peer's rate": lambda model: optim.SOAP(model, lr=3e-3, betas=(0.95, 0.95)),
}
PEERS: dict[str, Make] = {
    SOAP: lambda model: peers.SOAP(model.parameters()),
    "torch Muon with AdamW": lambda model: optim.create("muon", model),
    ADAMW: lambda model: optim.AdamW(model.parameters()),
}


def run(data_dir: Path, command: str) -> None:
    """Trains all on all problems with the same batches, and writes the table."""
    adamw = {f"torch AdamW at {rate:g}": _adamw(rate) for rate in ADAMW_RATES}
    jobs: list[tuple[Problem, dict[str, Make]]] = [
        (problem, {**OURS, **ALIKE, **PEERS}) for problem in TUNED_ON
    ]
    jobs += [(problem, {**OURS, ADAMW: PEERS[ADAMW], **adamw}) for problem in HELD_OUT]
    rows = []
    for problem, contestants in jobs:
        samples = data.load(problem.data, data_dir, 0, torch.device("cpu"))
        losses = {
            name: [final_loss(problem, samples, make, seed) for seed in SEEDS]
            for name, make in track(contestants.items(), problem.title)
        }
        rows += _tuned(problem, losses) if problem in TUNED_ON else _held_out(problem, losses)
    show(f"Loss on the training set after {STEPS} steps", rows, command)


def _tuned(problem: Problem, losses: dict[str, list[float]]) -> list[Row]:
    """The losses themselves, and SOAP's in relation to its peer's."""
    peers_losses = "; ".join(f"{name} {_spread(losses[name])}" for name in PEERS)
    rows = [
        Row(
            f"{problem.title}, {name}",
            _spread(losses[name]),
            peers_losses,
            mean(losses[name]),
            problem.targets[name],
        )
        for name in OURS
    ]
    for name, target in (("soap", "<= 1.0"), *((name, "") for name in ALIKE)):
        what = f"{problem.title}, {name}, share of {SOAP}'s"
        ratio = mean(losses[name]) / mean(losses[SOAP])
        rows.append(Row(what, _spread(losses[name]), _spread(losses[SOAP]), ratio, target))
    return rows


def _held_out(problem: Problem, losses: dict[str, list[float]]) -> list[Row]:
    """Shares of the loss of AdamW as it comes, next to AdamW at the best rate of a sweep."""
    swept = [name for name in losses if name not in OURS and name != ADAMW]
    best = min(swept, key=lambda name: mean(losses[name]))
    others = f"{ADAMW} {_spread(losses[ADAMW])}; best of a sweep: {best} {_spread(losses[best])}"
    return [
        Row(
            f"{problem.title}, nothing tuned on it, {name}, share of {ADAMW}'s",
            _spread(losses[name]),
            others,
            mean(losses[name]) / mean(losses[ADAMW]),
        )
        for name in OURS
    ]


def final_loss(problem: Problem, samples: data.Data, make: Make, seed: int) -> float:
    """Trains with a rate that falls linearly to zero: mean loss over the whole training set."""
    torch.manual_seed(seed)
    model = problem.build(samples.image_size, samples.classes)
    optimizer = make(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    for _, batch in zip(range(STEPS), batches(samples.train, seed), strict=False):
        optimizer.zero_grad()
        F.cross_entropy(model(batch.inputs), batch.labels).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        total = sum(
            float(F.cross_entropy(model(part.inputs), part.labels, reduction="sum"))
            for part in (samples.train[i : i + 5000] for i in range(0, len(samples.train), 5000))
        )
    return total / len(samples.train)


def _adamw(rate: float) -> Make:
    return lambda model: optim.AdamW(model.parameters(), lr=rate)


def batches(samples: Samples, seed: int) -> Iterator[Samples]:
    """Yields whole minibatches for ever; a seed has the same for everybody."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(samples), generator=generator)
        for rows in order.split(BATCH)[: len(samples) // BATCH]:
            yield samples[rows]


def _spread(losses: list[float]) -> str:
    return f"{mean(losses):.3g} ± {stdev(losses):.1g}"
