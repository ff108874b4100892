"""Gradient and natural gradient on a Gaussian under two parametrisations."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import picture
from common.picture import BLUE, GREY, INK
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter
from torch import Tensor, nn
from torch.autograd.functional import jvp
from torch.distributions import Normal, kl_divergence

from npg.optim import NaturalGradient

ORANGE = "#d9730d"
START, TARGET = (-0.5, 0.8), (1.0, 0.7)  # (μ, σ)
TIME = 3.0  # η times the number of steps
RATES = [1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128]
COARSE, FINE = RATES[0], RATES[-1]

CAPTION = (
    "From N(−0.5, 0.8²), the loss is KL(N(1, 0.7²) ‖ model). Every path takes "
    f"{TIME:.0f}/η steps and is drawn in the (μ, σ) plane. Lines: η = 1/{1 / FINE:.0f}, dots: η = "
    f"1/{1 / COARSE:.0f}; dashed: the limit, in closed form. Right: the distance between the two "
    "paths after equally many steps, after one and at most; its order is the power of η by which "
    "it falls over the last halving. A natural gradient is one tangent vector, whatever the "
    "parameters; a step along it is straight in the parameters, so one step differs by O(η²), and "
    "the 3/η steps of a path by O(η). NaturalGradient with damping 0, the dense Fisher matrix and "
    "no trust region; torch.optim.SGD."
)


@dataclass(frozen=True)
class Parametrisation:
    """A Gaussian by its mean and a function of its standard deviation.

    Attributes:
        name: How it is labelled.
        of: The second parameter of σ.
        sigma: σ of the second parameter.
        colour: Of its paths.
    """

    name: str
    of: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]
    colour: str


DEVIATION = Parametrisation("(μ, σ)", lambda s: s, lambda s: s, BLUE)
PRECISION = Parametrisation("(μ, 1/σ²)", lambda s: s**-2, lambda p: p**-0.5, ORANGE)


def path(kind: Parametrisation, natural: bool, rate: float, time: float = TIME) -> np.ndarray:
    """Follows an optimizer.

    Args:
        kind: What the parameters are.
        natural: :class:`npg.optim.NaturalGradient` without damping, else gradient descent.
        rate: η.
        time: η times the number of steps.

    Returns:
        (μ, σ) before the first step and after each, [steps + 1, 2].
    """
    mean, other = (torch.tensor([value], dtype=torch.float64) for value in START)
    parameters = [nn.Parameter(mean), nn.Parameter(kind.of(other))]

    def model() -> Normal:
        return Normal(parameters[0], kind.sigma(parameters[1]))

    def loss(prediction: Normal) -> Tensor:
        target = Normal(*(torch.tensor(value, dtype=torch.float64) for value in TARGET))
        return kl_divergence(target, prediction).sum()

    def natural_step() -> None:
        report = tangent_steps.step(lambda: (loss(prediction := model()), prediction))
        assert report.accepted, report

    def step() -> None:
        descent.zero_grad()
        loss(model()).backward()
        descent.step()

    tangent_steps = NaturalGradient(
        parameters, lr=rate, target_kl=None, damping=0.0, curvature="fisher-dense"
    )
    descent = torch.optim.SGD(parameters, rate)
    places = [START]
    for _ in range(round(time / rate)):
        (natural_step if natural else step)()
        places.append((parameters[0].item(), kind.sigma(parameters[1]).item()))
    return np.array(places)


def flow(time: np.ndarray) -> np.ndarray:
    """What natural paths tend to: E[x] and E[x²] go straight to the target's, as 1 − e⁻ᵗ.

    Args:
        time: [n].

    Returns:
        (μ, σ), [n, 2].
    """
    (start, target) = (np.array([m, m**2 + s**2]) for m, s in (START, TARGET))
    mean, square = (target + (start - target) * np.exp(-time)[:, None]).T
    return np.stack([mean, np.sqrt(square - mean**2)], axis=1)


def tangent_difference() -> float:
    """How far the first natural steps' directions are apart once both are taken to (μ, σ)."""
    sigma = torch.tensor(START[1], dtype=torch.float64)
    arrows = []
    for kind in (DEVIATION, PRECISION):
        before, after = path(kind, True, FINE, FINE)
        here = kind.of(sigma)
        moved = kind.of(torch.tensor(after[1])) - here
        rise = jvp(kind.sigma, here, moved)[1].item()
        arrows.append(np.array([after[0] - before[0], rise]))
    return float(np.linalg.norm(arrows[0] - arrows[1]) / np.linalg.norm(arrows[0]))


def distances(natural: bool) -> np.ndarray:
    """Distances of the two parametrisations' paths, after one step and at most: [rates, 2]."""
    found = []
    for rate in RATES:
        paths = [path(kind, natural, rate) for kind in (DEVIATION, PRECISION)]
        apart = np.linalg.norm(paths[0] - paths[1], axis=1)
        found.append((apart[1], apart.max()))
    return np.array(found)


def order(distance: np.ndarray) -> float:
    """The power of η by which a distance falls over the last halving of η."""
    return float(np.log2(distance[-2] / distance[-1]))


def draw(output: Path) -> dict[str, str]:
    """Natural gradient goes the same way whatever the parameters; gradient descent does not.

    Args:
        output: PNG file.

    Returns:
        What the picture shows, in numbers.
    """
    drawn = picture.figure(13, 5.6)
    left, middle, right = drawn.subplots(1, 3)
    _plane(left, "Gradient descent: two ways", natural=False)
    _plane(middle, "Natural gradient: one way, as η → 0", natural=True)
    plain, natural = distances(False), distances(True)
    picture.style(right, "η", "distance in the (μ, σ) plane")
    right.set_title("How far the two ways are apart", loc="left", color=INK, size=10.5)
    _fall(right, plain[:, 1], "gradient descent, at most", GREY, "o-")
    _fall(right, natural[:, 1], "natural gradient, at most", INK, "o-")
    _fall(right, natural[:, 0], "natural gradient, one step", INK, "o--")
    right.set(xscale="log", yscale="log")
    right.xaxis.set_major_locator(FixedLocator(RATES))
    right.xaxis.set_minor_locator(NullLocator())
    right.set_xticklabels([f"1/{1 / rate:.0f}" for rate in RATES])
    right.yaxis.set_minor_formatter(NullFormatter())
    right.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    picture.explain(
        drawn,
        "Under two parametrisations of a Gaussian, gradients differ and natural gradients agree",
        CAPTION,
    )
    picture.save(drawn, output)
    found = {"tangent vectors, relative difference": f"{tangent_difference():.1e}"}
    for name, column in (("one step", natural[:, 0]), ("whole path", natural[:, 1])):
        found[f"natural, {name}, η = 1/8 … 1/128"] = "  ".join(f"{d:.1e}" for d in column)
        found[f"natural, {name}, order in η"] = f"{order(column):.2f}"
    found["gradient descent, whole path"] = "  ".join(f"{d:.2f}" for d in plain[:, 1])
    return found


def _plane(axes: Axes, title: str, natural: bool) -> None:
    picture.style(axes, "μ", "σ")
    axes.set_title(title, loc="left", color=INK, size=10.5)
    mean, sigma = torch.meshgrid(
        torch.linspace(-0.65, 1.25, 150), torch.linspace(0.55, 1.62, 150), indexing="xy"
    )
    loss = kl_divergence(Normal(*TARGET), Normal(mean, sigma))
    axes.contour(mean, sigma, loss, levels=np.logspace(-2.5, 0.5, 13), colors=GREY, linewidths=0.5)
    for kind, width, under in ((DEVIATION, 5, 0.35), (PRECISION, 1.6, 1)):
        fine, coarse = path(kind, natural, FINE), path(kind, natural, COARSE)
        width, under = (width, under) if natural else (1.8, 1)
        axes.plot(*fine.T, color=kind.colour, lw=width, alpha=under, label=kind.name)
        axes.plot(*coarse.T, "o:", color=kind.colour, lw=0.8, ms=3.5, alpha=0.9)
    if natural:
        axes.plot(*flow(np.linspace(0, TIME, 100)).T, color=INK, lw=1, ls="--", label="η → 0")
    axes.plot(*START, "o", color=INK, ms=6, zorder=4)
    axes.plot(*TARGET, "*", color=INK, ms=12, zorder=4)
    axes.annotate(
        "start", START, xytext=(0, -14), textcoords="offset points", ha="center", color=INK, size=9
    )
    axes.annotate(
        "target", TARGET, xytext=(0, -16), textcoords="offset points", ha="center", size=9
    )
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set(xlim=(-0.65, 1.25), ylim=(0.55, 1.62), xticks=[-0.5, 0, 0.5, 1])
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper right", title="gradient in")


def _fall(axes: Axes, values: np.ndarray, label: str, colour: str, line: str) -> None:
    power = order(values)
    axes.plot(RATES, values, line, color=colour, lw=1.5, ms=4, label=f"{label}: order {power:.2f}")
