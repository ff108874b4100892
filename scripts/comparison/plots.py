"""The report's pictures: PNG and SVG files, and the SVG as the page holds it."""

import html
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from common import picture
from common.files import replacing
from common.picture import COLOURS, FAINT, GREY, INK
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

WIDTH, HEIGHT = 4.8, 3.0  # inches of the axes; the legend comes below
# A colour, and a dash and a marker, tell 35 lines apart: as many as there are optimizers.
DASHES = ("-", "--", ":", "-.", (0, (7, 1.5, 1, 1.5, 1, 1.5)))
MARKERS = "os^Dv"
LEGEND_CHARACTERS = 74  # that fit beside each other
# Colours of the page, which has a light and a dark scheme, instead of those of the files.
VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", GREY: "var(--grey)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(COLOURS)
}


@dataclass(frozen=True)
class Plot:
    """A picture.

    Attributes:
        name: Of its files.
        title: Above it.
        alt: What it shows, in words.
        svg: An element of HTML.
    """

    name: str
    title: str
    alt: str
    svg: str


@dataclass(frozen=True)
class Line:
    """A line with a band around it.

    Attributes:
        label: Whose it is.
        index: Among all; the same everywhere, as is the colour that it stands for.
        x: Points.
        y: Values; one column, or three: value, lower end, upper end.
        bound: A value that the line should not exceed.
    """

    label: str
    index: int
    x: np.ndarray
    y: np.ndarray
    bound: float | None = None


class Drawer:
    """Draws into a directory.

    Args:
        directory: Of the files.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def lines(
        self,
        name: str,
        title: str,
        alt: str,
        lines: Sequence[Line],
        labels: tuple[str, str],
        log: str = "",
        points: bool = False,
        engineering: bool = False,
        span: float = np.inf,
    ) -> Plot | None:
        """Draws lines with bands.

        Args:
            name: Of the files.
            title: Above the axes.
            alt: In words.
            lines: What to draw.
            labels: Of both axes.
            log: Which axes are logarithmic: "", "x", "y" or "xy".
            points: Whether they are marked.
            engineering: Whether x counts thousands and millions.
            span: Highest to lowest value shown of y, at most, where it is logarithmic.

        Returns:
            The picture; None where there is no line.
        """
        if not lines:
            return None

        def draw(axes: Axes) -> None:
            picture.style(axes, *labels)
            if not engineering:
                axes.xaxis.set_major_formatter(ScalarFormatter())
            if "x" in log and all((line.x > 0).all() for line in lines):
                formatter = axes.xaxis.get_major_formatter()
                axes.set_xscale("log")
                _plain_decades(axes.xaxis, np.concatenate([line.x for line in lines]))
                if engineering:
                    axes.xaxis.set_major_formatter(formatter)
            values = [line.y[np.isfinite(line.y)] for line in lines]
            if "y" in log and all((v > 0).all() for v in values):
                axes.set_yscale("log")
                shown = np.concatenate(values)
                shown = shown[shown <= span * shown.min()]
                _plain_decades(axes.yaxis, shown)
                if np.isfinite(span):
                    axes.set_ylim(shown.min() / 1.2, shown.max() * 1.2)
            for line in lines:
                self._line(axes, line, points)

        legend = [(line.label, line.index) for line in lines]
        return self._save(name, title, alt, draw, legend, points=points)

    def intervals(
        self,
        name: str,
        title: str,
        alt: str,
        rows: Sequence[tuple[str, int, Sequence[float]]],
        x_label: str,
    ) -> Plot | None:
        """Draws a point and its interval for each label, the first on top.

        Args:
            name: Of the files.
            title: Above the axes.
            alt: In words.
            rows: Label, index and (value, lower end, upper end).
            x_label: What is on the axis.

        Returns:
            The picture; None where there is no row.
        """
        if not rows:
            return None

        def draw(axes: Axes) -> None:
            picture.style(axes, x_label, "")
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.grid(visible=False, axis="y")
            for place, (_, index, (value, low, high)) in enumerate(rows):
                colour = COLOURS[index % len(COLOURS)]
                axes.plot([low, high], [place, place], color=colour, lw=5, alpha=0.35)
                axes.plot([value], [place], color=colour, marker="o", ms=6)
            axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
            axes.set_ylim(len(rows) - 0.4, -0.6)

        return self._save(name, title, alt, draw, (), height=0.9 + 0.3 * len(rows))

    def remove(self, names: Iterable[str]) -> None:
        """Removes the files of pictures, by name."""
        for name in names:
            for kind in ("png", "svg"):
                (self.directory / f"{name}.{kind}").unlink(missing_ok=True)

    @staticmethod
    def _line(axes: Axes, line: Line, points: bool) -> None:
        style = _style(line.index, points or len(line.x) == 1)
        colour = style["color"]
        y = line.y.reshape(len(line.x), -1)
        axes.plot(line.x, y[:, 0], lw=1.6, **style)
        if y.shape[1] == 3 and np.isfinite(y).any(axis=0).all():
            axes.fill_between(line.x, y[:, 1], y[:, 2], color=colour, alpha=0.15, lw=0)
        if line.bound is not None:
            axes.axhline(line.bound, color=colour, lw=1, ls=(0, (1, 2)))

    def _save(
        self,
        name: str,
        title: str,
        alt: str,
        draw: Callable[[Axes], None],
        legend: Sequence[tuple[str, int]],
        height: float = HEIGHT,
        points: bool = False,
    ) -> Plot:
        columns = 1
        if legend:
            longest = max(len(label) for label, _ in legend)
            columns = min(len(legend), max(1, LEGEND_CHARACTERS // (longest + 7)))
        rows = -(-len(legend) // columns)
        drawn = picture.figure(WIDTH, height + 0.4 + 0.19 * rows)
        axes = drawn.add_subplot()
        draw(axes)
        axes.tick_params(labelsize=8.5)
        for label in [*axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]:
            label.set_parse_math(False)
        axes.set_title(title, loc="left", weight="bold", color=INK, size=10, parse_math=False)
        if legend:
            _legend(drawn, legend, columns, points)
        picture.save(drawn, self.directory / f"{name}.png")
        drawn.set_layout_engine("none")  # it has found the places
        content = _svg(drawn, name)
        with replacing(self.directory / f"{name}.svg") as temporary:
            temporary.write_text(content, encoding="utf-8")
        return Plot(name, title, alt, _inlined(content, alt))


def _plain_decades(axis: Axis, values: np.ndarray) -> None:
    """Writes 0.01 and not powers of ten, which are typeset slowly; 2 and 5 in a short range."""
    short = values.max() < 50 * values.min()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if short else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _style(index: int, points: bool) -> dict[str, Any]:
    """Returns how a line is drawn, by its place among all."""
    group = index // len(COLOURS)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "ls": DASHES[group % len(DASHES)],
        "marker": MARKERS[group % len(MARKERS)] if points else "",
        "ms": 4,
    }


def _legend(drawn: Figure, entries: Sequence[tuple[str, int]], columns: int, points: bool) -> None:
    handles = [mpl.lines.Line2D([], [], **_style(index, points)) for _, index in entries]
    shown = drawn.legend(
        handles,
        [label for label, _ in entries],
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=2.4,
        columnspacing=1.4,
    )
    for text in shown.get_texts():
        text.set_parse_math(False)


def _svg(drawn: Figure, name: str) -> str:
    content = StringIO()
    # Text stays text, and the same numbers give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        drawn.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return content.getvalue()


def _inlined(content: str, alt: str) -> str:
    """The element <svg> alone, in the page's colours, with its description."""
    body = content[content.index("<svg") :]
    box = re.search(r'viewBox="([^"]*)"', body)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # the same in every picture
    opening = f'<svg viewBox="{box[1]}" role="img" aria-label="{html.escape(alt)}">'
    body = opening + body[body.index(">") + 1 :]
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, variable)
    return body
