"""The picture of an explanation: decisions, attributions over time, and the ranking."""

from pathlib import Path

import numpy as np
from common import picture
from common.picture import BLUE, GREY, INK
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from explanation.attribution import Explanation
from explanation.episodes import Episodes

MAGNITUDE = LinearSegmentedColormap.from_list("magnitude", ["#ffffff", "#a9c6ee", BLUE, "#0b2545"])
SIGNED, MANY = colormaps["RdBu_r"], colormaps["turbo"]
COLOURS = ("#1f5fbf", "#d9730d", "#2f8f5b", "#b0307a", "#7a6a00", "#5a4fcf", "#6b7280", "#0f8b8d")
ROW, HEAD = 0.26, 3.1  # inches of a coordinate, and of what is above and below the map


def draw(
    path: Path,
    found: Explanation,
    played: Episodes,
    names: list[str],
    title: str,
    subtitle: str,
    *,
    top: int,
    decision: int | None,
) -> None:
    """Draws a PNG file.

    Args:
        path: Of the file.
        found: Attributions of all steps; the ranking is over all of them.
        played: What the agent did; its first episode is drawn over time.
        names: Of the coordinates.
        title: What was explained.
        subtitle: How.
        top: How many coordinates to show.
        decision: Which one's attributions to show with their sign; None for all their magnitudes.
    """
    rows, shown = found.order()[:top], played.first()
    drawn = picture.figure(12, HEAD + ROW * max(len(rows), 8))
    grid = drawn.add_gridspec(
        2, 2, width_ratios=(3.4, 1), height_ratios=(1.5, ROW * max(len(rows), 8))
    )
    trace = drawn.add_subplot(grid[0, 0])
    heat = drawn.add_subplot(grid[1, 0], sharex=trace)
    bars = drawn.add_subplot(grid[1, 1], sharey=heat)
    drawn.suptitle(title, x=0.01, ha="left", weight="bold", color=INK, size=13)
    drawn.supxlabel(subtitle, x=0.01, ha="left", color=INK, size=8.5)
    _trace(trace, found, played, decision)
    image = _heat(heat, found, shown, rows, names, decision)
    _bars(bars, found, rows)
    _legend(drawn, grid[0, 1], image, found, decision)
    picture.save(drawn, path)


def _colours(found: Explanation) -> list:
    """One colour a decision."""
    number = len(found.names)
    few = number <= len(COLOURS)
    return list(COLOURS[:number]) if few else list(MANY(np.linspace(0.03, 0.97, number)))


def _trace(axes: Axes, found: Explanation, played: Episodes, decision: int | None) -> None:
    shown = played.first()
    if np.issubdtype(played.actions.dtype, np.integer):
        picture.style(axes, "", "action")
        axes.plot(played.actions[shown], color=INK, lw=0.8, drawstyle="steps-mid")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        picture.style(axes, "", "mean action")
        for i, colour in enumerate(_colours(found)):
            if decision in (None, i):
                axes.plot(found.decisions[shown, i], color=colour, lw=1.1, alpha=0.9)
    axes.tick_params(labelbottom=False)
    axes.margins(x=0)


def _heat(
    axes: Axes,
    found: Explanation,
    shown: slice,
    rows: np.ndarray,
    names: list[str],
    decision: int | None,
) -> AxesImage:
    attributions = found.attributions[shown][:, :, rows]
    signed = decision is not None or len(found.names) == 1
    values = attributions[:, decision or 0] if signed else np.abs(attributions).sum(1)
    largest = float(np.quantile(np.abs(values), 0.995)) or 1.0
    picture.style(axes, "step of the episode", "")
    image = axes.imshow(
        values.T,
        aspect="auto",
        cmap=SIGNED if signed else MAGNITUDE,
        norm=Normalize(-largest if signed else 0, largest),
        interpolation="nearest",
    )
    axes.grid(visible=False)
    axes.set_yticks(range(len(rows)), [names[i] for i in rows], fontsize=8.5)
    return image


def _bars(axes: Axes, found: Explanation, rows: np.ndarray) -> None:
    importance = found.importance()
    total = max(float(importance.sum()), 1e-12)
    picture.style(axes, "mean |attribution|", "")
    left = np.zeros(len(rows))
    for own, colour in zip(importance, _colours(found), strict=True):
        axes.barh(range(len(rows)), own[rows], left=left, height=0.72, color=colour)
        left += own[rows]
    for place, length in enumerate(left):
        label = f" {length / total:.0%}"
        axes.text(length, place, label, va="center", color=INK, size=8)
    axes.set_xlim(0, left.max() * 1.2 or 1)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(visible=False, axis="y")
    axes.tick_params(labelleft=False, left=False)


def _legend(
    drawn: Figure, place: object, image: AxesImage, found: Explanation, decision: int | None
) -> None:
    axes = drawn.add_subplot(place)  # type: ignore[call-overload]
    axes.axis("off")
    several = len(found.names) > 1
    if several:
        for name, colour in zip(found.names, _colours(found), strict=True):
            axes.plot([], [], color=colour, lw=2.5, label=name)
        columns = min(4, -(-len(found.names) // 3))
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=columns, loc="upper left")
    bar = drawn.colorbar(
        image, cax=axes.inset_axes((0.03, 0.16, 0.9, 0.09)), orientation="horizontal"
    )
    if decision is None and several:
        label = "attribution: sum of magnitudes over actions"
    else:
        label = f"attribution to {found.names[decision or 0]}: red raises it, blue lowers it"
    bar.ax.set_title(label, fontsize=7.5, color=INK, loc="left", pad=3)
    bar.ax.tick_params(color=GREY, labelcolor=INK, labelsize=7.5)
    bar.outline.set_visible(False)  # type: ignore[operator]
