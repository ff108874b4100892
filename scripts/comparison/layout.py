"""What a report consists of, before it is HTML."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from comparison.intervals import Interval
from comparison.plots import Plot

NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """An entry of a table.

    Attributes:
        text: What it says.
        key: What its column is sorted by; the text where it is None.
        kind: CSS class: a verdict or a status.
        folded: Longer text that unfolds below.
    """

    text: str
    key: float | None = None
    kind: str = ""
    folded: str = ""


@dataclass(frozen=True)
class Column:
    """Head of a table's column, with what it means in a sentence."""

    label: str
    hint: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table that sorts by each of its columns."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Fold:
    """Plots and tables that show when asked for."""

    title: str
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Its heading.
        anchor: What links to it.
        text: Paragraphs above everything.
        findings: Sentences with their verdicts.
        plots: Side by side where there is room.
        tables: Below each other.
        folds: At the end.
    """

    title: str
    anchor: str
    text: Sequence[str] = ()
    findings: Sequence[object] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    folds: Sequence[Fold] = field(default_factory=tuple)


def number(value: float) -> str:
    """Returns a number as people write it: 1,234, 0.123, 1.2e-05."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if value == 0 or (float(value).is_integer() and size < 1e12):
        return f"{value:,.0f}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 100 else f"{value:.3g}"


def interval(estimate: Interval, digits: int | None = None) -> str:
    """Returns a value with its interval; a single run has none."""

    def shown(value: float) -> str:
        return number(value) if digits is None else f"{value:.{digits}f}"

    if math.isnan(estimate.low):
        return shown(estimate.value)
    return f"{shown(estimate.value)} [{shown(estimate.low)}, {shown(estimate.high)}]"


def estimate(value: Interval | None, digits: int | None = None) -> Cell:
    """Returns the cell of an interval."""
    return Cell(NOTHING) if value is None else Cell(interval(value, digits), value.value)


def figure(value: float | None, text: str = "") -> Cell:
    """Returns the cell of a number, with another text if one is given."""
    if value is None or math.isnan(value):
        return Cell(text or NOTHING)
    return Cell(text or number(value), value)
