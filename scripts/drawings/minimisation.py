"""Minimisers in a curved valley, and how many evaluations a whole set of problems takes them."""

from pathlib import Path

import numpy as np
import torch
from benchmarks.minimisers import Run, ours, scipys
from benchmarks.more_garbow_hillstrom import PROBLEMS
from common import picture
from common.picture import BLUE, GREY, INK
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter
from torch import Tensor

from npg.optim import minimize

START = (-1.2, 1.0)
ORANGE, GREEN = "#d9730d", "#2f8f5b"
# Ours, SciPy's counterpart, colour.
PAIRS = [
    ("bfgs", "BFGS", BLUE),
    ("l-bfgs", "L-BFGS-B", ORANGE),
    ("newton", "trust-exact", GREEN),
]
CAPTION = (
    "Left: Rosenbrock's function, one dot an iteration. Right: 23 problems of Moré, Garbow and "
    "Hillstrom, solved where f is within 10⁻⁸ max(1, |f*|) of a published minimum;\nsolid ours, "
    "dashed SciPy's counterpart. A value with its gradient is one evaluation; Newton's methods "
    "take Hessians besides."
)


def rosenbrock(x: Tensor) -> Tensor:
    """100 (x₂ − x₁²)² + (1 − x₁)²."""
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def path(method: str) -> np.ndarray:
    """Where a method was after each iteration, [iterations + 1, 2]."""
    places = [torch.tensor(START, dtype=torch.float64)]
    minimize(rosenbrock, places[0], method=method, tol=1e-8, callback=places.append)
    return torch.stack(places).numpy()


def draw(output: Path) -> dict[str, str]:
    """Minimisers in a curved valley, and the evaluations that 23 problems take them.

    Args:
        output: PNG file.

    Returns:
        What the picture shows, in numbers.
    """
    drawn = picture.figure(12, 5.2)
    valley, counts = drawn.subplots(1, 2)
    _valley(valley)
    found: dict[str, str] = {}
    picture.style(counts, "evaluations", "problems solved")
    for method, peer, colour in PAIRS:
        for name, run, dashes in ((method, ours, "-"), (peer, scipys, "--")):
            runs = [run(problem, name) for problem in PROBLEMS]
            who = "SciPy's " if run is scipys else ""
            _solved(counts, runs, f"{who}{name}", colour, dashes)
            reached = [r.evaluations for r in runs if r.evaluations is not None]
            found[f"{who}{name}"] = (
                f"solves {len(reached)} of {len(runs)}, {sum(reached)} evaluations"
            )
    counts.set_xscale("log")
    counts.xaxis.set_major_formatter(ScalarFormatter())
    counts.set_title("Evaluations to the minimum", loc="left", color=INK, size=10.5)
    counts.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    drawn.supxlabel(CAPTION, x=0.01, ha="left", color=INK, size=9)
    picture.save(drawn, output)
    return found


def _valley(axes: Axes) -> None:
    picture.style(axes, "x₁", "x₂")
    axes.set_title("The way through the valley", loc="left", color=INK, size=10.5)
    x, y = np.meshgrid(np.linspace(-1.6, 1.5, 300), np.linspace(-0.6, 1.7, 300))
    values = rosenbrock(torch.from_numpy(np.stack([x, y]))).numpy()
    axes.contour(x, y, values, levels=np.logspace(-1, 3, 13), colors=GREY, linewidths=0.6)
    for method, _, colour in PAIRS:
        places = path(method)
        axes.plot(*places.T, "o-", color=colour, lw=1.2, ms=3, label=f"{method}, {len(places) - 1}")
    axes.plot(1, 1, "*", color=INK, ms=12, zorder=4)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlim(-1.6, 1.5)
    axes.set_ylim(-0.6, 1.7)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper center", title="iterations")


def _solved(axes: Axes, runs: list[Run], name: str, colour: str, dashes: str) -> None:
    reached = sorted(run.evaluations for run in runs if run.evaluations is not None)
    axes.step(
        [*reached, reached[-1] * 1.05],
        [*range(1, len(reached) + 1), len(reached)],
        where="post",
        color=colour,
        ls=dashes,
        lw=1.6,
        label=name,
    )
