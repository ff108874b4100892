"""What a report consists of, before it is HTML."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from comparison.intervals import Interval
from comparison.plots import Plot

NOTHING = "–"
MOST_DECIMALS = 6
HUGE = 1e10


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
    if size < HUGE and (size >= 1000 or float(value).is_integer()):
        return f"{value:,.0f}"
    return f"{value:.4g}" if 100 <= size < 1000 else f"{value:.3g}"


def interval(estimate: Interval, digits: int | None = None) -> str:
    """Returns a value with its interval; a single run has none."""
    ends = (estimate.value, estimate.low, estimate.high)
    if digits is None:
        size = max((abs(end) for end in ends if math.isfinite(end)), default=0)
        digits = _decimals(size) if size < HUGE else MOST_DECIMALS + 1
        if size < HUGE and all(end.is_integer() for end in ends if math.isfinite(end)):
            digits = 0
    kind = "e" if digits > MOST_DECIMALS else "f"
    value, low, high = (
        f"{end:,.{min(digits, 2) if kind == 'e' else digits}{kind}}" for end in ends
    )
    return value if math.isnan(estimate.low) else f"{value} [{low}, {high}]"


def _decimals(size: float) -> int:
    """Three significant digits, four of hundreds."""
    if size == 0 or size >= 1000:
        return 0
    return 1 if size >= 100 else 2 - math.floor(math.log10(size))


def estimate(value: Interval | None, digits: int | None = None) -> Cell:
    """Returns the cell of an interval."""
    return Cell(NOTHING) if value is None else Cell(interval(value, digits), value.value)


def figure(value: float | None, text: str = "") -> Cell:
    """Returns the cell of a number, with another text if one is given."""
    if value is None or math.isnan(value):
        return Cell(text or NOTHING)
    return Cell(text or number(value), value)
