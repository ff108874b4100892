"""Tables of comparisons in a Markdown page, between marks that name their directories.

<!-- comparison: results/mujoco -->
what stands here is written anew
<!-- end -->
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from common.files import replacing

from comparison import contest, intervals, notes, results
from comparison.agent_sections import slug
from comparison.contest import Contest
from comparison.intervals import REPETITIONS
from comparison.layout import NOTHING, interval, number
from comparison.page import PLOTS
from comparison.race import Race, quotient, race
from comparison.results import Results
from comparison.shared_sections import NO_SECONDS, speed
from npg.errors import ConfigurationError

MARK = re.compile(r"<!-- *(?:comparison: *(?P<place>[^\n]+?)|end) *-->")


def write(page: Path, repetitions: int = REPETITIONS) -> list[Path]:
    """Writes the tables of a page anew.

    Args:
        page: Markdown with marks. Directories are relative to it.
        repetitions: Bootstrap resamples.

    Returns:
        The directories of the comparisons.

    Raises:
        ConfigurationError: If the page is not there, its marks cannot be used, or a directory holds
            no comparison of agents.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"{page} cannot be read ({error}): name a Markdown page with marks"
        ) from error
    marks = list(MARK.finditer(text))
    begins, ends = marks[::2], marks[1::2]
    if (
        len(begins) != len(ends)
        or not all(mark["place"] for mark in begins)
        or any(mark["place"] for mark in ends)
        or not marks
    ):
        raise ConfigurationError(
            f"{page} has no marks that can be used: `<!-- comparison: DIRECTORY -->` and "
            "`<!-- end -->` have to take turns, around every place where tables are to stand"
        )
    places = [page.parent / mark["place"] for mark in begins]
    tables = [
        digest(results.load(place), repetitions, _pictures(place, mark["place"]))
        for place, mark in zip(places, begins, strict=True)
    ]
    kept = zip([0, *(mark.start() for mark in ends)], [m.end() for m in begins], strict=False)
    before = [text[start:end] for start, end in kept]
    written = "".join(f"{head}\n{table}" for head, table in zip(before, tables, strict=True))
    with replacing(page) as temporary:
        temporary.write_text(written + text[ends[-1].start() :], encoding="utf-8")
    return places


def digest(
    found: Results, repetitions: int = REPETITIONS, pictures: Mapping[str, str] | None = None
) -> str:
    """Returns a comparison of agents as Markdown: its command, and a table an environment.

    Args:
        found: The runs; the first-named agent is compared with every other.
        repetitions: Bootstrap resamples.
        pictures: Links to the report's pictures, by the names of their files.

    Returns:
        The text; unfinished runs are counted in it.

    Raises:
        ConfigurationError: If the comparison is not one of agents.
    """
    if found.kind != "agent":
        raise ConfigurationError(f"a digest is of agents, got a comparison of {found.kind}s")
    scores = contest.of_agents(found, repetitions)
    about = found.about
    machine = about.get("machine", {})
    text = f"""
```sh
{about.get("command")}
```

Processor {machine.get("cpu")}, cores {machine.get("cores")}, runs at a time {about.get("jobs")}, \
threads a run 1; {_versions(about.get("versions", {}))}.
"""
    said = notes.of(found) + ([] if found.seconds_count else [NO_SECONDS])
    text += "".join(f"\n- {note}" for note in said) + ("\n" if said else "")
    for task in found.tasks:
        text += _table(found, scores, task) + _learning(task, pictures or {})
    return text


def _pictures(directory: Path, link: str) -> dict[str, str]:
    """What the report has drawn, as the page links to it."""
    return {p.name: f"{link}/{PLOTS}/{p.name}" for p in (directory / PLOTS).glob("*.png")}


def _learning(task: str, pictures: Mapping[str, str]) -> str:
    """The learning curves, if they are there."""
    shown = [
        f"![Training return on {task} against {x}]({pictures[name]})\n"
        for x in ("steps", "seconds")
        if (name := f"learning_{slug(task)}_{x}.png") in pictures
    ]
    return "".join(["\n", *shown])


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _table(found: Results, scores: Contest, task: str) -> str:
    first = scores.names[0]
    heads = ["agent", "runs", "steps", "final return", f"P({first} above)", "steps/s"]
    heads += ["trains to", "where it is after", f"{first} after", "ratio"]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    rows += [_row(found, scores, task, first, name) for name in scores.names]
    return f"\n### {task}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(found: Results, scores: Contest, task: str, first: str, name: str) -> list[str]:
    runs = scores.runs[name, task]
    planned = len(found.planned(name, task))
    label = name if len(runs) == planned else f"{name} ({planned - len(runs)} of {planned} lack)"
    if not runs:
        return [label, "0", *[NOTHING] * 8]
    summary = scores.summary(name, task)
    better = None if name == first else scores.improvement(first, name, task)
    there = None if name == first else race(scores.runs[first, task], runs)
    speeds = np.array([speed(run) for run in runs])
    return [
        label,
        str(len(runs)),
        number(max(run.steps for run in runs)),
        interval(summary[0].iqm) if summary else NOTHING,
        interval(better.probability, digits=2) if better else NOTHING,
        number(round(float(intervals.mean_of_middle(speeds)))) if found.seconds_count else NOTHING,
        *(_race(there, found.seconds_count) if there else [NOTHING] * 4),
    ]


def _race(found: Race, seconds_count: bool) -> list[str]:
    """Where the other ends its training, and when it and the first are there."""
    ours, theirs = found.seconds if seconds_count else found.steps
    unit = "s" if seconds_count else "steps"
    target, there = number(found.target), f"{number(round(theirs, 1))} {unit}"
    if not np.isfinite(ours):
        return [target, there, "not reached", NOTHING]
    ratio = quotient(ours, theirs)
    said = f"{ratio:.2f}" if np.isfinite(ratio) else NOTHING
    return [target, there, f"{number(round(ours, 1))} {unit}", said]
