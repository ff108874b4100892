"""Policy gradient and evolution strategies: their means, and what their variances grow with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import picture
from common.picture import BLUE, GREY, INK
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, ScalarFormatter
from torch import Tensor

from drawings import gradient_estimators as estimators
from drawings.gradient_estimators import Estimator, Problem

ORANGE, GREEN = "#d9730d", "#2f8f5b"
FEW, MANY = 8, 32
SIZES = [2, 8, 32, 128, 512]
NOISES = [0.25, 0.5, 1.0, 2.0, 4.0]

CAPTION = (
    "An episode is T steps x ← x + a/√T from x = 0; its cost, ½ (x − 1)², is known at the end. "
    "The policy is linear, a = θᵀs, with P parameters. Policy gradient: noise of deviation σ in "
    "every action (score_function, leave-one-out baseline). Evolution strategies: noise of "
    "deviation σ in every parameter (shaping “none”), and no other. The states s are such that "
    "both noises move the end alike; σ = 1 except bottom right. Variances are n E‖ĝ − g‖²/‖g‖² of "
    "estimates ĝ from n = {episodes} episodes, g being exact: points are means over "
    "{repetitions} estimates with two standard errors, lines closed forms. They count the numbers "
    "that noise is drawn for: T, or P. Pairs ±ε take out what the cost’s curvature adds, "
    "but are two episodes each: they pay where σ is large."
)


@dataclass(frozen=True)
class Kind:
    """An estimator and how it is drawn.

    Attributes:
        name: Of its curve.
        estimate: It.
        colour: Of its curve.
        shape: Of its points.
        in_actions: Whether its noise is in actions.
        pairs: Whether its noise comes in pairs.
    """

    name: str
    estimate: Estimator
    colour: str
    shape: str
    in_actions: bool = False
    pairs: bool = False


KINDS = [
    Kind("policy gradient", estimators.policy_gradient, ORANGE, "s", in_actions=True),
    Kind("evolution strategies", estimators.strategies, BLUE, "o"),
    Kind("evolution strategies, pairs", estimators.strategies_in_pairs, BLUE, "D", pairs=True),
]
SCORE = Kind("policy gradient of N(θ, σ²I)", estimators.parameter_score, GREEN, "v")


def draw(output: Path) -> dict[str, str]:
    """Policy gradient and evolution strategies: one gradient, and variances by what noise is in.

    Args:
        output: PNG file.

    Returns:
        What the picture shows, in numbers.
    """
    drawn = picture.figure(13, 9)
    panels = drawn.subplots(2, 2)
    found = _means(panels[0, 0])
    sigma = estimators.SIGMA
    by_parameters = [(Problem.of(size, MANY), sigma) for size in SIZES]
    by_steps = [(Problem.of(MANY, size), sigma) for size in SIZES]
    by_noise = [(Problem.of(MANY, MANY), noise * estimators.GOAL) for noise in NOISES]
    for axes, title, label, places, problems in (
        (panels[0, 1], f"By parameters P, with T = {MANY}", "P", SIZES, by_parameters),
        (panels[1, 0], f"By steps T, with P = {MANY}", "T", SIZES, by_steps),
        (panels[1, 1], f"By noise σ, with T = P = {MANY}", "σ", NOISES, by_noise),
    ):
        axes.set_title(f"Variance. {title}", loc="left", color=INK, size=10.5)
        found |= _variances(axes, label, places, problems)
    panels[1, 1].set_xlabel("σ / distance to the goal", color=INK)
    picture.explain(
        drawn,
        "Two estimators of one gradient: noise in every action, or noise in every parameter",
        CAPTION.format(episodes=estimators.EPISODES, repetitions=estimators.REPETITIONS),
    )
    picture.save(drawn, output)
    return found


def _means(axes: Axes) -> dict[str, str]:
    """Draws the means beside the exact gradient, and returns how far they are from it."""
    problem = Problem.of(FEW, FEW)
    exact = problem.gradient
    picture.style(axes, "parameter", "derivative of the cost")
    number = estimators.REPETITIONS * estimators.EPISODES
    title = f"The means coincide. T = P = {FEW}, {number:,} episodes each"
    axes.set_title(title, loc="left", color=INK, size=10.5)
    places = np.arange(1, FEW + 1)
    axes.bar(places, exact, 0.8, color=GREY, alpha=0.45, label="exact")
    same = estimators.difference_on_the_same_draws(problem)
    found = {"ES less the score of N(θ, σ²I), same draws": f"{same:.1e} of it"}
    for offset, kind in zip((-0.24, -0.08, 0.08, 0.24), [*KINDS, SCORE], strict=True):
        several = estimators.estimates(kind.estimate, problem)
        mean, error = several.mean(0), several.std(0) / len(several) ** 0.5
        _points(axes, places + offset, mean, 2 * error, kind)
        off = float((mean - exact).norm() / exact.norm())
        expected = float(error.norm() / exact.norm())
        found[f"mean of {kind.name}"] = f"{off:.1%} off, {expected:.1%} expected"
    axes.set_ylim(-0.85, None)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower left", ncols=2)
    return found


def _variances(
    axes: Axes, label: str, places: Sequence[float], problems: list[tuple[Problem, float]]
) -> dict[str, str]:
    """Draws measured variances over their closed forms, and returns both."""
    picture.style(axes, label, "episodes for an error ‖ĝ − g‖ = ‖g‖")
    found = {f"{label} =": "  ".join(f"{place:g}" for place in places)}
    for kind in KINDS:
        expected = [
            estimators.closed_form(problem.states.shape[not kind.in_actions], sigma, kind.pairs)
            for problem, sigma in problems
        ]
        values = [estimators.measured(kind.estimate, problem, sigma) for problem, sigma in problems]
        means, errors = np.array(values).T
        axes.plot(places, expected, color=kind.colour, lw=1.2, ls="-" if kind.pairs else "--")
        _points(axes, places, means, 2 * errors, kind)
        pairs = zip(means, errors, strict=True)
        found[f"{kind.name}, {label}"] = "  ".join(f"{m:.1f} ± {e:.1f}" for m, e in pairs)
        found[f"{kind.name}, {label}, closed form"] = "  ".join(f"{e:.1f}" for e in expected)
    axes.set(xscale="log", yscale="log", xticks=places)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.minorticks_off()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")
    return found


def _points(
    axes: Axes, x: Sequence[float] | np.ndarray, y: Tensor | np.ndarray, bars: object, kind: Kind
) -> None:
    axes.errorbar(
        x,
        y,
        yerr=bars,
        fmt=kind.shape,
        fillstyle="none" if kind.shape == "o" else "full",
        color=kind.colour,
        ms=5,
        lw=1.2,
        label=kind.name,
    )
