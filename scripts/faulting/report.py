"""The table of faults."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """A fault.

    Attributes:
        fault: What happened.
        promised: What is to come of it.
        seen: What came of it.
        held: Whether that is the same.
    """

    fault: str
    promised: str
    seen: str
    held: bool


def show(rows: Sequence[Row]) -> None:
    """Prints the table."""
    table = Table("fault", "promised", "seen", "held")
    for row in rows:
        table.add_row(row.fault, row.promised, row.seen, "yes" if row.held else "[red]NO")
    Console().print(table)
