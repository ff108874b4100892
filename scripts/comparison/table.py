"""What a comparison has done so far, as a table that is drawn anew while it runs."""

import time
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from types import TracebackType
from typing import Any, Self

from common.progress import SECONDS_BETWEEN_UPDATES
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from comparison.job import Job

WIDE = 100  # columns of a terminal


class LiveTable:
    """One row per agent or optimizer and task: runs by state, scores, steps per second.

    Args:
        jobs: All runs of the comparison.
        title: Above the table.
        score: What the score is: "return", "accuracy".
        console: Where to draw; on one that is no terminal every run that ends is a line instead.
    """

    def __init__(
        self, jobs: Sequence[Job], title: str, score: str, console: Console | None = None
    ) -> None:
        self.jobs = jobs
        self.title = title
        self.score = score
        self.console = Console() if console is None else console
        self._results: dict[str, dict[str, Any]] = {}
        self._running: Collection[Job] = ()
        self._live = Live(console=self.console, auto_refresh=False)
        self._drawn = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self._live.update(self.drawn(), refresh=True)
            self._live.stop()
        else:
            self.console.print(self.drawn())

    def ended(self, job: Job, earlier: bool = False) -> None:
        """Counts a run that has ended.

        Args:
            job: Which one.
            earlier: Whether it ended before this comparison went on.
        """
        result = job.result()
        if result is None:
            return
        self._results[job.name] = result
        if not self.console.is_terminal and not earlier:
            done = f"{len(self._results)} of {len(self.jobs)}"
            self.console.print(f"{done}: {job.name} {result['status']}{_said(result)}")

    def say(self, words: str) -> None:
        """Prints a line, above the table on a terminal."""
        self.console.print(words, markup=False, highlight=False, soft_wrap=True)

    def show(self, running: Collection[Job]) -> None:
        """Draws the table, if that is due.

        Args:
            running: The runs that are running.
        """
        self._running = running
        due = time.monotonic() - self._drawn >= SECONDS_BETWEEN_UPDATES
        if due and self.console.is_terminal:
            self._drawn = time.monotonic()
            self._live.update(self.drawn(), refresh=True)

    def drawn(self) -> Table:
        """Returns the table as of now."""
        padding = (0, 1) if self.console.width >= WIDE else 0
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, padding=padding)
        for name in ("", "task"):
            table.add_column(name, overflow="fold")
        for name in ("done", "now", "failed", "left", self.score, "training", "steps/s"):
            table.add_column(name, justify="right", no_wrap=True)
        rows: dict[tuple[str, str], list[Job]] = {}
        for job in self.jobs:
            rows.setdefault((job.about["name"], job.about["task"]), []).append(job)
        for (name, task), jobs in rows.items():
            table.add_row(name, task, *self._cells(jobs))
        return table

    def _cells(self, jobs: Sequence[Job]) -> list[str]:
        results = [self._results[job.name] for job in jobs if job.name in self._results]
        finished = [result for result in results if result["status"] == "finished"]
        running = [
            job.progress() for job in jobs if job in self._running and job.name not in self._results
        ]
        failed = len(results) - len(finished)
        speeds = [
            run["steps"] / run["seconds"] for run in [*finished, *running] if run.get("seconds")
        ]
        waiting = len(jobs) - len(results) - len(running)
        return [
            f"[green]{len(finished)}" if finished else "0",
            str(len(running)),
            f"[red]{failed}" if failed else "0",
            str(waiting),
            _mean([fmean(scores) for result in finished if (scores := _final(result))]),
            _mean([run["score"] for run in running if run.get("score") is not None]),
            f"{fmean(speeds):,.0f}" if speeds else "–",
        ]


def _final(result: Mapping[str, Any]) -> list[float]:
    return [score for score in result.get("final") or () if score is not None]


def _said(result: Mapping[str, Any]) -> str:
    """The score of a run that finished, the reason of one that failed."""
    scores, reason = _final(result), str(result.get("error") or "").splitlines()
    if scores:
        return f", {_mean([fmean(scores)])}"
    return f": {reason[-1].strip()}" if reason else ""


def _mean(values: list[float]) -> str:
    if not values:
        return "–"
    mean = fmean(values)
    return f"{mean:,.0f}" if abs(mean) >= 1000 else f"{mean:.4g}"
