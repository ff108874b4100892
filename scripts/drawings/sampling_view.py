"""A mean of random displacements that is damped Newton's step, from steepest descent to Newton."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import picture
from common.picture import BLUE, GREY, INK
from common.seeds import OPTIMIZER, derived
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, ScalarFormatter
from torch import Tensor, nn

from npg.optim import MLEGuidedSearch

ORANGE, GREEN = "#d9730d", "#2f8f5b"
HESSIAN = torch.tensor([[0.6, 0.0], [0.0, 4.0]], dtype=torch.float64)
START = torch.tensor([-2.0, -0.9], dtype=torch.float64)  # the minimum is at 0
SIGMA = 1.0
TEMPERATURES = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
GRID = np.logspace(-4, 4, 200)
CANDIDATES, REPETITIONS = 2000, 8
# Of those that have room for one, offset in points.
LABELS = {0.1: (-8, 7), 0.3: (-16, 7), 1.0: (-30, 6), 3.0: (5, -9), 10.0: (5, -9)}

CAPTION = (
    "l(θ) = ½ θᵀHθ, H = diag(0.6, 4), gradient g at the start. Displacements Δ ~ N(0, σ²I), σ = 1, "
    "have weights w ∝ exp(−l(θ + Δ)/α), which sum to 1. Lines are closed forms, Δ* = −(H + (α/σ²) "
    "I)⁻¹ g; dots are one step of MLEGuidedSearch (exploration 1, absolute scale) with "
    "{candidates} candidates, a mean of {repetitions} seeds, bars two standard errors. A small α "
    "lets the objective decide: the mean step is Newton’s, and rests on few candidates. A large "
    "α counts all nearly alike: what is left of their mean is short, and points along −g. "
    "Effective sample size: 1/Σw²."
)


def objective(theta: Tensor) -> Tensor:
    """l(θ) = ½ θᵀHθ."""
    return theta @ HESSIAN @ theta / 2


def gradient() -> Tensor:
    """g at the start [2]."""
    return HESSIAN @ START


def expected(temperature: float) -> Tensor:
    """Δ* = −(H + (α/σ²) I)⁻¹ g [2]."""
    damping = temperature / SIGMA**2 * torch.eye(2, dtype=torch.float64)
    return -torch.linalg.solve(HESSIAN + damping, gradient())


def expected_share(temperature: float) -> float:
    """(E w)² / E w², the effective sample size of infinitely many candidates, as a share."""
    return math.exp(2 * _log_mean_weight(temperature) - _log_mean_weight(temperature / 2))


def _log_mean_weight(temperature: float) -> float:
    """log E exp(−[l(θ + Δ) − l(θ)]/α), an integral over Gaussians."""
    scaled = torch.eye(2, dtype=torch.float64) + SIGMA**2 / temperature * HESSIAN
    gain = -gradient() @ expected(temperature) / (2 * temperature)
    return float(gain - torch.logdet(scaled) / 2)


@dataclass
class Sampled:
    """What steps of the search found at one temperature.

    Attributes:
        steps: One a seed, [seeds, 2].
        share: Mean effective sample size over the number of candidates.
    """

    steps: Tensor
    share: float

    @property
    def mean(self) -> Tensor:
        """Of the steps [2]."""
        return self.steps.mean(0)

    @property
    def errors(self) -> Tensor:
        """Standard errors of the mean [2]."""
        return self.steps.std(0) / len(self.steps) ** 0.5


def sampled(
    temperature: float, candidates: int | None = None, repetitions: int | None = None
) -> Sampled:
    """Takes one step of :class:`npg.optim.MLEGuidedSearch` from the start, with several seeds.

    Args:
        temperature: α.
        candidates: Of a step. Default: ``CANDIDATES``.
        repetitions: Seeds. Default: ``REPETITIONS``.

    Returns:
        The steps.
    """
    steps, sizes = [], []
    candidates = candidates or CANDIDATES
    for seed in range(repetitions or REPETITIONS):
        theta = nn.Parameter(START.clone())
        search = MLEGuidedSearch(
            [theta],
            lr=1.0,
            candidates=candidates,
            sigma=SIGMA,
            scale="absolute",
            exploration=1.0,
            temperature=temperature,
            seed=derived(seed, OPTIMIZER),
        )
        report = search.step(lambda theta=theta: objective(theta))
        steps.append(theta.detach() - START)
        sizes.append(report.effective_sample_size / candidates)
    return Sampled(torch.stack(steps), float(np.mean(sizes)))


def angle(a: Tensor, b: Tensor) -> float:
    """Between two vectors, in degrees."""
    cross = a[0] * b[1] - a[1] * b[0]
    return math.degrees(math.atan2(abs(float(cross)), float(a @ b)))


def draw(output: Path) -> dict[str, str]:
    """The mean of weighted random steps: steepest descent for a large α, Newton's for a small one.

    Args:
        output: PNG file.

    Returns:
        What the picture shows, in numbers.
    """
    found = {temperature: sampled(temperature) for temperature in TEMPERATURES}
    drawn = picture.figure(13, 5.2)
    plane, angles, sizes = drawn.subplots(1, 3, width_ratios=[1.75, 1, 1])
    _plane(plane, found)
    _angles(angles, found)
    _sizes(sizes, found)
    picture.explain(
        drawn,
        "The sampling view: the mean of weighted random steps lies between steepest descent "
        "and Newton's step",
        CAPTION.format(candidates=CANDIDATES, repetitions=REPETITIONS),
    )
    picture.save(drawn, output)
    worst = max(float(((s.mean - expected(t)) / s.errors).abs().max()) for t, s in found.items())
    result = {"largest deviation, in standard errors": f"{worst:.1f}"}
    for temperature, steps in found.items():
        exact = expected(temperature)
        result[f"α = {temperature:g}"] = (
            f"Δ ({steps.mean[0]:.3f}, {steps.mean[1]:.3f}) ± "
            f"({steps.errors[0]:.3f}, {steps.errors[1]:.3f}), Δ* ({exact[0]:.3f}, {exact[1]:.3f}), "
            f"{angle(exact, -gradient()):.1f}° from −g, {angle(exact, expected(0)):.1f}° from "
            f"Newton's, {steps.share:.1%} effective"
        )
    return result


def _plane(axes: Axes, found: dict[float, Sampled]) -> None:
    picture.style(axes, "θ₁", "θ₂")
    axes.set_title("Where one step leads", loc="left", color=INK, size=10.5)
    x, y = np.meshgrid(np.linspace(-2.3, 0.5, 200), np.linspace(-1.25, 0.55, 200))
    places = torch.from_numpy(np.stack([x, y], axis=-1))
    values = torch.einsum("...i,ij,...j->...", places, HESSIAN, places) / 2
    axes.contour(x, y, values, levels=np.arange(0.15, 4, 0.35), colors=GREY, linewidths=0.5)
    downhill = -gradient() / gradient().norm() * 0.95
    for arrow, name, colour, offset in (
        (downhill, "−g, steepest descent", ORANGE, (8, -4)),
        (expected(0), "Newton’s step", GREEN, (-98, -64)),
    ):
        tip = START + arrow
        axes.annotate(
            "",
            tip.tolist(),
            xytext=START.tolist(),
            arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0},
        )
        axes.annotate(
            name, tip.tolist(), xytext=offset, textcoords="offset points", color=colour, size=9
        )
    ends = torch.stack([START + expected(float(temperature)) for temperature in GRID])
    axes.plot(*ends.T, color=INK, lw=1.3, label="θ + Δ*(α)")
    for number, (temperature, steps) in enumerate(found.items()):
        end, bars = START + steps.mean, 2 * steps.errors
        label = "MLEGuidedSearch" if number == 0 else None
        axes.errorbar(
            *end.tolist(),
            xerr=bars[0],
            yerr=bars[1],
            fmt="o",
            color=BLUE,
            ms=4,
            lw=1.2,
            zorder=4,
            label=label,
        )
        if temperature in LABELS:
            axes.annotate(
                f"α = {temperature:g}",
                end.tolist(),
                xytext=LABELS[temperature],
                textcoords="offset points",
                color=BLUE,
                size=8,
            )
    axes.plot(*START.tolist(), "o", color=INK, ms=6, zorder=3)
    axes.annotate(
        "start, α → ∞", START.tolist(), xytext=(4, -14), textcoords="offset points", size=9
    )
    axes.plot(0, 0, "*", color=INK, ms=12, zorder=3)
    axes.annotate("minimum, α → 0", (0, 0), xytext=(-50, 20), textcoords="offset points", size=9)
    axes.set(xlim=(-2.3, 0.5), ylim=(-1.25, 0.55), aspect="equal")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")


def _angles(axes: Axes, found: dict[float, Sampled]) -> None:
    picture.style(axes, "α", "angle")
    axes.set_title("The direction turns with α", loc="left", color=INK, size=10.5)
    for target, name, colour in (
        (-gradient(), "to −g", ORANGE),
        (expected(0), "to Newton’s", GREEN),
    ):
        exact = [angle(expected(float(temperature)), target) for temperature in GRID]
        axes.plot(GRID, exact, color=colour, lw=1.5, label=name)
        for temperature, steps in found.items():
            axes.errorbar(
                temperature,
                angle(steps.mean, target),
                yerr=2 * _angle_error(steps),
                fmt="o",
                color=colour,
                ms=4,
                lw=1.2,
            )
    axes.set_xscale("log")
    axes.set_ylim(-2, None)
    axes.yaxis.set_major_formatter("{x:.0f}°")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="center left")


def _angle_error(steps: Sampled) -> float:
    """Standard error of the mean step's angle: that across it, over its length, in degrees."""
    along = steps.mean / steps.mean.norm()
    across = steps.steps @ torch.stack([-along[1], along[0]])
    return math.degrees(float(across.std() / len(across) ** 0.5 / steps.mean.norm()))


def _sizes(axes: Axes, found: dict[float, Sampled]) -> None:
    picture.style(axes, "α", "share of the candidates")
    axes.set_title("Effective sample size", loc="left", color=INK, size=10.5)
    axes.plot(
        GRID, [expected_share(float(t)) for t in GRID], color=INK, lw=1.3, label="closed form"
    )
    axes.plot(
        list(found), [s.share for s in found.values()], "o", color=BLUE, label="MLEGuidedSearch"
    )
    axes.set(xscale="log", yscale="log", ylim=(0.0008, 1.3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
