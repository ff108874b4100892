"""K-BFGS on the autoencoder: its loss next to AdamW's, and its step next to K-FAC's."""

from pathlib import Path
from statistics import median

import torch

from benchmarks import autoencoder
from benchmarks.autoencoder import ADAMW_RATE, LIKELIHOOD, Training, batches, take_turns
from benchmarks.report import Row, interleaved, median_ratio, show
from npg.optim import train_step

# K-FAC inverts once in so many steps: a figure is the mean of one whole cycle.
CYCLE = 20
# K-FAC's plain loop: labels are drawn in every step.
KFAC = {
    "likelihood": LIKELIHOOD,
    "damping": 0.01,
    "momentum": 0.9,
    "statistics_interval": 1,
    "inverse_interval": CYCLE,
}


def run(seconds: float, rounds: int, data_dir: Path, command: str) -> None:
    """Times the steps, trains in turns, and writes the table."""
    images = autoencoder.load(data_dir)
    rows = [_steps(images, rounds), *_losses(images, seconds)]
    show("K-BFGS on the autoencoder", rows, command)


def _steps(images: torch.Tensor, rounds: int) -> Row:
    """Whole steps, forward and backward passes included, on the same batch."""
    batch = next(batches(images))
    stay = {"lr": 1e-9}  # the work is the same
    kbfgs = Training("kbfgs", stay, False, images, 0.0)
    kfac = Training("kfac", {**KFAC, **stay}, False, images, 0.0)

    def kbfgs_cycle() -> None:
        for _ in range(CYCLE):
            train_step(kbfgs.optimizer, lambda: kbfgs.objective(batch))

    def kfac_cycle() -> None:
        for _ in range(CYCLE):
            kfac.optimizer.zero_grad()
            kfac.objective(batch)[0].backward()
            kfac.optimizer.step()

    ours, other = interleaved([kbfgs_cycle, kfac_cycle], rounds)
    return Row(
        "K-BFGS's whole step in relation to K-FAC's, statistics every step, inverses every 20",
        f"{median(ours) / CYCLE * 1e3:.1f} ms",
        f"{median(other) / CYCLE * 1e3:.1f} ms",
        median_ratio(ours, other),
        "<= 1.4",
    )


def _losses(images: torch.Tensor, seconds: float) -> list[Row]:
    """Losses after so many seconds of training, both rates falling linearly to zero."""
    adamw = Training("adamw", {"lr": ADAMW_RATE}, True, images, seconds)
    kbfgs = Training("kbfgs", {}, True, images, seconds)
    take_turns(adamw, kbfgs)
    goal, reached = adamw.curve[-1][2], kbfgs.curve[-1][2]
    soon = [(at, steps) for at, steps, loss in kbfgs.curve if loss <= goal]
    at, steps = soon[0] if soon else (float("inf"), 0)
    other = f"AdamW {goal:.2f}, {adamw.steps} steps"
    return [
        Row(
            f"K-BFGS's loss after {seconds:.0f} s, share of AdamW's",
            f"{reached:.2f}, {kbfgs.steps} steps",
            other,
            reached / goal,
            "<= 1",
        ),
        Row(
            f"K-BFGS until AdamW's loss after {seconds:.0f} s, share of the time",
            f"{at:.1f} s, {steps} steps",
            other,
            at / seconds,
        ),
    ]
