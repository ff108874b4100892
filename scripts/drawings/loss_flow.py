"""The flow dx/dt = −L g/‖g‖², whose loss falls as e⁻ᵗ, beside gradient descent."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import picture
from common.picture import BLUE, GREY, INK
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter
from torch import Tensor, nn

from npg.optim import LossFlow

START, RATE, BOUND, STEPS = 4.0, 0.01, 1000.0, 2500
LIFT = 1.62276  # makes the least value zero
LOW_BOUND, RAISED = 10.0, 0.5
ORANGE, GREEN, RED = "#d9730d", "#2f8f5b", "#c0392b"

CAPTION = (
    f"LossFlow: x ← x − η·min(1/|f′|, M)·f·f′/|f′|, with η = {RATE}, M = {BOUND:.0f}, from "
    f"x = {START:.0f}, {STEPS} steps; gradient descent with the same η. In the valley at 3, f is "
    "1.62 and f′ is nearly 0, so the flow's steps are long, and one of them leaves. It needs "
    "both: a least value of 0, where steps vanish, and a large M, which lets them be long enough."
)


def objective(x: Tensor, lift: float = LIFT) -> Tensor:
    """f(x) = x (x − 1) (x − 3)² + lift."""
    return x * (x - 1) * (x - 3) ** 2 + lift


@dataclass
class Path1D:
    """Where an optimizer was, and the loss there; one entry more than steps."""

    x: np.ndarray
    loss: np.ndarray

    @property
    def end(self) -> float:
        """The last x."""
        return float(self.x[-1])


def flow(start: float = START, bound: float = BOUND, lift: float = LIFT) -> Path1D:
    """Follows :class:`npg.optim.LossFlow`."""
    x = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = LossFlow([x], lr=RATE, max_inverse_norm=bound)
    return _follow(x, lift, lambda: optimizer.step(lambda: (objective(x, lift), x)))


def descent(start: float = START) -> Path1D:
    """Follows gradient descent at the same rate."""
    x = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = torch.optim.SGD([x], RATE)

    def step() -> None:
        optimizer.zero_grad()
        objective(x).backward()
        optimizer.step()

    return _follow(x, LIFT, step)


def draw(output: Path) -> dict[str, str]:
    """The loss-driven flow leaves a valley, where gradient descent settles; and what it needs.

    Args:
        output: PNG file.

    Returns:
        What the picture shows, in numbers.
    """
    flowing, descending, near = flow(), descent(), flow(-0.5)
    short, raised = flow(bound=LOW_BOUND), flow(lift=LIFT + RAISED)
    drawn = picture.figure(12, 7.4)
    panels = drawn.subplots(2, 2)
    _landscape(panels[0, 0], flowing, descending)
    _positions(
        panels[0, 1],
        "It leaves the valley at 3",
        [(flowing, BLUE, "LossFlow"), (descending, ORANGE, "gradient descent")],
    )
    _losses(panels[1, 0], flowing, descending, near)
    _positions(
        panels[1, 1],
        "What it needs: min L = 0, and a large M",
        [
            (raised, RED, f"min L = {RAISED}: finds no rest"),
            (short, GREEN, f"M = {LOW_BOUND:.0f}: cannot leave"),
            (flowing, BLUE, f"min L = 0, M = {BOUND:.0f}"),
        ],
    )
    picture.explain(
        drawn,
        "A flow driven by the loss: dx/dt = −L g/‖g‖², so that L(t) = L(0) e⁻ᵗ",
        CAPTION,
    )
    picture.save(drawn, output)
    return {
        "LossFlow ends at": f"{flowing.end:.4f}, f = {flowing.loss[-1]:.1e}",
        "gradient descent ends at": f"{descending.end:.4f}, f = {descending.loss[-1]:.4f}",
        f"with M = {LOW_BOUND:.0f} it ends at": f"{short.end:.4f}, f = {short.loss[-1]:.4f}",
        f"with min L = {RAISED} the last 500 steps span": (
            f"{raised.x[-500:].min():.2f} to {raised.x[-500:].max():.2f}"
        ),
        "from −0.5, L(t) e^t / L(0) at t = 5 and 10": (
            f"{near.loss[500] / near.loss[0] * np.exp(5):.3f}, "
            f"{near.loss[1000] / near.loss[0] * np.exp(10):.3f}"
        ),
    }


def _follow(x: nn.Parameter, lift: float, step: Callable[[], object]) -> Path1D:
    places = [float(x.detach())]
    for _ in range(STEPS):
        step()
        places.append(float(x.detach()))
    at = torch.tensor(places, dtype=torch.float64)
    return Path1D(at.numpy(), objective(at, lift).numpy())


def _landscape(axes: Axes, flowing: Path1D, descending: Path1D) -> None:
    picture.style(axes, "x", "f(x)")
    axes.set_title("f(x) = x (x − 1) (x − 3)² + 1.62276", loc="left", color=INK, size=10.5)
    grid = torch.linspace(-0.75, 4.15, 500, dtype=torch.float64)
    axes.plot(grid, objective(grid), color=GREY, lw=2)
    for path, colour, size in ((descending, ORANGE, 26), (flowing, BLUE, 7)):
        inside = (path.x > -0.75) & (path.x < 4.15)
        axes.scatter(path.x[inside], path.loss[inside], s=size, color=colour, lw=0, zorder=3)
    _mark(axes, START, flowing.loss[0], "start", INK, (-62, -14))
    _mark(axes, descending.end, descending.loss[-1], "gradient descent ends", ORANGE, (-58, 42))
    _mark(axes, flowing.end, flowing.loss[-1], "LossFlow ends", BLUE, (-6, 58))
    left = flowing.x.argmin()
    axes.annotate(
        f"a step to ({flowing.x[left]:.2f}, {flowing.loss[left]:.0f})",
        (-0.62, 14.5),
        xytext=(14, -4),
        textcoords="offset points",
        color=BLUE,
        size=9,
        arrowprops={"arrowstyle": "-|>", "color": BLUE, "lw": 1.2},
    )
    axes.set_ylim(-1, 15)


def _mark(
    axes: Axes, x: float, y: float, text: str, colour: str, offset: tuple[float, float]
) -> None:
    axes.annotate(
        f"{text}\n({x:.2f}, {abs(y):.2f})",
        (x, y),
        xytext=offset,
        textcoords="offset points",
        ha="center",
        color=colour,
        size=9,
        weight="bold",
        arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.2, "shrinkB": 4},
    )
    axes.plot(x, y, "o", color=colour, ms=6, zorder=4)


def _positions(axes: Axes, title: str, paths: list[tuple[Path1D, str, str]]) -> None:
    picture.style(axes, "step", "x")
    axes.set_title(title, loc="left", color=INK, size=10.5)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    for path, colour, label in paths:
        axes.plot(path.x, color=colour, lw=1.3, label=label)
    axes.set_ylim(-2.6, 6.2)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper right")


def _losses(axes: Axes, flowing: Path1D, descending: Path1D, near: Path1D) -> None:
    picture.style(axes, "t = η · steps", "L(t)")
    axes.set_title(
        "The loss falls as e⁻ᵗ where no valley holds it up", loc="left", color=INK, size=10.5
    )
    axes.set_yscale("log")
    time = np.arange(STEPS + 1) * RATE
    axes.plot(time, descending.loss, color=ORANGE, lw=1.3, label="gradient descent")
    axes.plot(time, flowing.loss, color=BLUE, lw=1.3, label="LossFlow from 4")
    axes.plot(time, near.loss, color=GREEN, lw=1.8, label="LossFlow from −½")
    for path, own in ((flowing, False), (near, True)):
        label = "L(0) e⁻ᵗ" if own else None
        axes.plot(time, path.loss[0] * np.exp(-time), color=INK, lw=1, ls=":", label=label)
    least = float(near.loss.min())
    axes.text(14, least / 3, f"min f = {least:.1e}", ha="right", color=GREEN, size=8.5)
    axes.set_ylim(1e-7, 1e4)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper right", ncols=2)
