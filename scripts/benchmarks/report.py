"""Timing by interleaved rounds, and the table that docs/benchmarks.md keeps."""

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

DOCS = Path(__file__).parent.parent.parent / "docs"
RECORD = DOCS / "benchmarks.json"


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        what: What was measured.
        ours: Our figure, with its unit.
        other: The figure that it is compared with.
        ratio: Ours in relation to the other, as the target counts it.
        target: What the ratio should be, ">= 8" or "<= 1.2"; empty where there is none.
    """

    what: str
    ours: str
    other: str
    ratio: float
    target: str = ""

    @property
    def met(self) -> str:
        """Whether the ratio is on the right side of the target."""
        if not self.target:
            return ""
        sign, bound = self.target.split()
        good = self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)
        return "yes" if good else "NO"


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(functions: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Times several functions in turn, so that a busy moment of the machine hits all alike.

    Args:
        functions: What to time; each is called once before, to warm up.
        rounds: Calls of each.

    Returns:
        One list of seconds per function.
    """
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, record in zip(functions, times, strict=True):
            record.append(seconds(function))
    return times


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def show(title: str, rows: list[Row], command: str) -> None:
    """Prints a table and records it for docs/benchmarks.md."""
    table = Table("what", "ours", "compared with", "ratio", "target", "met", title=title)
    for row in rows:
        table.add_row(row.what, row.ours, row.other, f"{row.ratio:.2f}", row.target, row.met)
    Console(width=140).print(table)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[title] = {
        "command": command,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads",
        "date": time.strftime("%Y-%m-%d"),
        "rows": [asdict(row) | {"met": row.met} for row in rows],
    }
    DOCS.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    (DOCS / "benchmarks.md").write_text(_markdown(record))


def _markdown(record: dict[str, dict]) -> str:
    lines = [
        "# Benchmarks",
        "",
        "Written by `python scripts/benchmark.py`; every figure was measured by the command above "
        "its table, both sides in one interleaved run. Ratios are medians over rounds.",
    ]
    for title, section in record.items():
        lines += [
            "",
            f"## {title}",
            "",
            f"`{section['command']}` · {section['machine']} · {section['date']}",
            "",
            "| what | ours | compared with | ratio | target | met |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r['what']} | {r['ours']} | {r['other']} | {r['ratio']:.2f} | {r['target']} "
            f"| {r['met']} |"
            for r in section["rows"]
        ]
    return "\n".join(lines) + "\n"
