"""The look of the pictures, drawn without a display."""

import textwrap
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image

from common.files import replacing

GREY, BLUE, INK, FAINT = "#9aa5b1", "#1f5fbf", "#1f2933", "#e4e7eb"
COLOURS = ("#1f5fbf", "#d9730d", "#2f8f5b", "#b0307a", "#7a6a00", "#5a4fcf", "#6b7280")
CHARACTERS_PER_INCH = 15  # of a caption


def figure(width: float, height: float) -> Figure:
    """Makes an empty figure, sizes in inches."""
    empty = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(empty)
    return empty


def explain(drawn: Figure, title: str, caption: str) -> None:
    """Puts a title above a figure, and a caption, broken into lines, below it."""
    drawn.suptitle(title, x=0.01, ha="left", weight="bold", color=INK, size=13)
    width = round(CHARACTERS_PER_INCH * drawn.get_figwidth())
    lines = textwrap.fill(caption, width, break_on_hyphens=False)
    drawn.supxlabel(lines, x=0.01, ha="left", color=INK, size=9)


def save(drawn: Figure, path: Path) -> None:
    """Writes a figure to a PNG file of 256 colours, a third as large as one of all."""
    pixels = BytesIO()
    drawn.savefig(pixels, format="png", pil_kwargs={"compress_level": 0})
    with Image.open(pixels) as image, replacing(path) as temporary:
        image.convert("RGB").quantize(256).save(temporary, format="PNG", optimize=True)


def style(axes: Axes, x_label: str, y_label: str) -> None:
    """Gives axes the look of all pictures."""
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color=FAINT, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelcolor=INK)
    axes.margins(x=0.03)
