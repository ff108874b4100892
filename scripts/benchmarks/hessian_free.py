"""A small autoencoder on whole batches: how soon NewtonCG is where AdamW is after 2,000 steps."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch
from rich.progress import track
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.report import Row, show
from npg.optim import AdamW, NewtonCG

STEPS = 2000
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
# Of AdamW's last loss; NewtonCG is timed until it is there, and given up after so many steps.
CLOSE = 1.01
GIVEN_UP = 200
TARGET = "<= 0.5"


@dataclass(frozen=True)
class Problem:
    """A loss of the network's output.

    Attributes:
        name: For the table.
        loss: From output and images to the loss per sample.
        likelihood: That of which it is the negative logarithm, up to constants.
    """

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    likelihood: str


def cross_entropy(logits: Tensor, images: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, images, reduction="sum") / len(images)


def squared_error(output: Tensor, images: Tensor) -> Tensor:
    return (output - images).square().sum() / len(images)


PROBLEMS = (
    Problem("cross-entropy", cross_entropy, "bernoulli"),
    Problem("squared error", squared_error, "normal"),
)


def autoencoder() -> nn.Module:
    torch.manual_seed(0)
    widths = (64, 32, 8, 32, 64)
    layers: list[nn.Module] = []
    for below, above in pairwise(widths):
        layers += [nn.Linear(below, above), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def adamw(problem: Problem, images: Tensor, rate: float) -> tuple[float, float]:
    """Seconds and last loss; the rate falls to zero along a cosine."""
    model = autoencoder()
    optimizer = AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    start = time.perf_counter()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = problem.loss(model(images), images)
        loss.backward()
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        return seconds, float(problem.loss(model(images), images))


def newton_cg(
    problem: Problem, images: Tensor, goal: float, preconditioned: bool
) -> tuple[float, str]:
    """Seconds until the loss is at the goal, and what it took."""
    model = autoencoder()
    optimizer = NewtonCG(
        model,
        cg_preconditioner="kfac" if preconditioned else None,
        likelihood=problem.likelihood if preconditioned else None,
    )

    def closure() -> tuple[Tensor, Tensor]:
        output = model(images)
        return problem.loss(output, images), output

    products = evaluations = 0
    start = time.perf_counter()
    for step in range(1, GIVEN_UP + 1):
        report = optimizer.step(closure)
        products += report.cg_iterations
        evaluations += report.evaluations
        if report.loss_after <= goal:
            seconds = time.perf_counter() - start
            return seconds, f"{step} steps, {products} products, {evaluations} evaluations"
    return math.inf, f"not in {GIVEN_UP} steps"


def run(rounds: int, command: str) -> None:
    """Finds AdamW's best rate, then times both in turns, and writes the table."""
    images = torch.tensor(load_digits().images, dtype=torch.float32).flatten(1) / 16
    rows = []
    for problem in PROBLEMS:
        swept = {
            rate: adamw(problem, images, rate)[1]
            for rate in track(RATES, f"AdamW, {problem.name}", transient=True)
        }
        rate = min(swept, key=lambda each: swept[each])
        goal = CLOSE * swept[rate]
        theirs: list[float] = []
        ours: dict[bool, list[float]] = {True: [], False: []}
        effort = {}
        for _ in track(range(rounds), f"both, {problem.name}", transient=True):
            theirs.append(adamw(problem, images, rate)[0])
            for preconditioned, record in ours.items():
                seconds, effort[preconditioned] = newton_cg(problem, images, goal, preconditioned)
                record.append(seconds)
        other = f"AdamW, lr {rate:g}: {swept[rate]:.4g} after {STEPS} steps, {median(theirs):.2f} s"
        for preconditioned, record in ours.items():
            how = "Kronecker-preconditioned" if preconditioned else "no preconditioner"
            rows.append(
                Row(
                    f"{problem.name}: NewtonCG ({how}) within 1 % of AdamW's loss, share of time",
                    f"{median(record):.2f} s; {effort[preconditioned]}",
                    other,
                    median(a / b for a, b in zip(record, theirs, strict=True)),
                    TARGET if preconditioned else "",
                )
            )
    show("Autoencoder on digits, whole batches", rows, command)
