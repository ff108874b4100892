"""What a step of an optimizer costs, against the library known for it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import pytorch_optimizer as peers
import torch
from classification import data, models
from classification.data import Samples
from rich.progress import track
from torch import Tensor, nn

from benchmarks.optimizer_losses import batches
from benchmarks.report import Row, median_ratio, show
from npg import optim

# Roots, bases and curvature come at intervals: a figure is the mean of whole cycles.
CYCLE = 10
# Long enough for every method to have started, and for states to be those of a training run.
WARM_UP = 3
LEAST_ROUNDS = 9

Drive = Literal["backward", "create_graph", "closure"]
Timed = Literal["step", "whole"]
Make = Callable[[nn.Module], torch.optim.Optimizer]


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return optim.AdamW(model.parameters(), foreach=True)


def ours(name: str, **options: object) -> Make:
    """The class of this name, with its defaults and these options."""
    return lambda model: getattr(optim, name)(model, **options)


def scalable_shampoo(**options: object) -> Make:
    """Roots every ten steps from the first on; the rest is the library's default."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        return peers.ScalableShampoo(
            model.parameters(),
            preconditioning_compute_steps=10,
            start_preconditioning_step=1,
            **options,
        )

    return make


def soap_of_peers(model: nn.Module) -> torch.optim.Optimizer:
    return peers.SOAP(model.parameters(), precondition_frequency=10)


def adahessian_of_peers(model: nn.Module) -> torch.optim.Optimizer:
    # Its default rate of 0.1 would leave numbers behind that are not finite.
    return peers.AdaHessian(model.parameters(), lr=1e-3)


@dataclass(frozen=True)
class Contestant:
    """How one optimizer is made and driven."""

    make: Make
    drive: Drive = "backward"


CONTESTANTS = {
    "torch AdamW": Contestant(adamw),
    "AdaX": Contestant(ours("AdaX")),
    "AdaXW": Contestant(ours("AdaXW")),
    "SignSGD": Contestant(ours("SignSGD")),
    "NormalizedGradient": Contestant(ours("NormalizedGradient")),
    "Shampoo, blocks of 512": Contestant(ours("Shampoo", block_size=512, merge_size=512)),
    "ScalableShampoo, blocks of 512": Contestant(scalable_shampoo()),
    "Shampoo, blocks of 256": Contestant(ours("Shampoo", block_size=256, merge_size=256)),
    "ScalableShampoo, blocks of 256": Contestant(scalable_shampoo(block_size=256)),
    "ScalableShampoo by SVD, blocks of 256": Contestant(
        scalable_shampoo(block_size=256, use_svd=True)
    ),
    "SOAP, blocks of 512": Contestant(ours("SOAP", refresh_interval=10, block_size=512)),
    "SOAP without blocks": Contestant(ours("SOAP", refresh_interval=10, block_size=10_000)),
    "pytorch_optimizer SOAP": Contestant(soap_of_peers),
    "SophiaG": Contestant(ours("SophiaG", lr=1e-3, hessian_interval=10, likelihood="categorical")),
    "SophiaH": Contestant(ours("SophiaH", lr=1e-3, hessian_interval=10), "closure"),
    "AdaHessian": Contestant(ours("AdaHessian", lr=1e-3), "closure"),
    "pytorch_optimizer AdaHessian": Contestant(adahessian_of_peers, "create_graph"),
}

# (ours, the other, what is timed, targets on the two models)
PAIRS: list[tuple[str, str, Timed, dict[models.ModelName, str]]] = [
    ("AdaX", "torch AdamW", "step", {"mlp": "<= 1.0", "cnn": "<= 1.0"}),
    ("AdaXW", "torch AdamW", "step", {"mlp": "<= 1.0", "cnn": "<= 1.0"}),
    ("SignSGD", "torch AdamW", "step", {"mlp": "<= 1.0", "cnn": "<= 1.0"}),
    ("NormalizedGradient", "torch AdamW", "step", {"mlp": "<= 1.0", "cnn": "<= 1.0"}),
    (
        "Shampoo, blocks of 512",
        "ScalableShampoo, blocks of 512",
        "step",
        {"mlp": "<= 0.6", "cnn": "<= 0.6"},
    ),
    (
        "Shampoo, blocks of 256",
        "ScalableShampoo, blocks of 256",
        "step",
        {"mlp": "<= 0.6", "cnn": "<= 0.6"},
    ),
    ("Shampoo, blocks of 256", "ScalableShampoo by SVD, blocks of 256", "step", {}),
    ("SOAP, blocks of 512", "pytorch_optimizer SOAP", "step", {"mlp": "<= 0.7", "cnn": "<= 0.6"}),
    ("SOAP without blocks", "pytorch_optimizer SOAP", "step", {}),
    ("SophiaG", "torch AdamW", "whole", {"mlp": "<= 1.3", "cnn": "<= 1.3"}),
    ("SophiaH", "torch AdamW", "whole", {"mlp": "<= 1.5", "cnn": "<= 1.5"}),
    ("AdaHessian", "pytorch_optimizer AdaHessian", "whole", {"mlp": "<= 0.8", "cnn": "<= 0.8"}),
]


class Training:
    """One contestant's training run, a cycle at a time.

    Args:
        model: Name of the model.
        contestant: Who trains it.
        samples: To learn from.
    """

    def __init__(
        self, model: models.ModelName, contestant: Contestant, samples: Samples, classes: int
    ) -> None:
        torch.manual_seed(0)
        self.model, self.task = models.build(model, samples.images.shape[-1], classes)
        self.optimizer = contestant.make(self.model)
        self.drive = contestant.drive
        self.batches = batches(samples, seed=0)
        for _ in range(WARM_UP):
            self.cycle()

    def cycle(self) -> dict[Timed, float]:
        """Trains for ten steps: mean seconds of ``optimizer.step()``, and of the whole."""
        steps, whole = 0.0, 0.0
        for _ in range(CYCLE):
            batch = next(self.batches)
            start = time.perf_counter()
            steps += self._train(batch)
            whole += time.perf_counter() - start
        return {"step": steps / CYCLE, "whole": whole / CYCLE}

    def _train(self, batch: Samples) -> float:
        if self.drive == "closure":
            optim.train_step(self.optimizer, lambda: self._forward(batch))
            return 0.0
        self.optimizer.zero_grad()
        loss, _ = self._forward(batch)
        loss.backward(create_graph=self.drive == "create_graph")
        start = time.perf_counter()
        self.optimizer.step()
        return time.perf_counter() - start

    def _forward(self, batch: Samples) -> tuple[Tensor, Tensor]:
        output = self.model(batch.inputs)
        return self.task.loss(output, batch), output


def run(rounds: int, data_dir: Path, command: str) -> None:
    """Alternates cycles of all contestants, and writes the table."""
    fashion = data.load("fashion-mnist", data_dir, 0, torch.device("cpu"))
    rows = []
    for model in ("mlp", "cnn"):
        trainings = {
            name: Training(model, contestant, fashion.train, fashion.classes)
            for name, contestant in CONTESTANTS.items()
        }
        times: dict[str, list[dict[Timed, float]]] = {name: [] for name in trainings}
        for _ in track(range(max(rounds, LEAST_ROUNDS)), f"{model}, rounds"):
            for name, training in trainings.items():
                times[name].append(training.cycle())
        for name, other, timed, targets in PAIRS:
            mine, theirs = ([t[timed] for t in times[who]] for who in (name, other))
            rows.append(
                Row(
                    f"{model}, {name}" + (", whole training step" if timed == "whole" else ""),
                    f"{median(mine) * 1e3:.2f} ms",
                    f"{other} {median(theirs) * 1e3:.2f} ms",
                    median_ratio(mine, theirs),
                    targets.get(model, ""),
                )
            )
    show("Steps of the optimizers", rows, command)
