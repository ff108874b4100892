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
from comparison.race import quotient_interval, race
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
    heads = ["agent", "runs", "environments", "steps", "final return", f"P({first} above)", "p"]
    heads += ["steps/s", "trains to", "where it is after", f"{first} after", "ratio"]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    rows += [_row(found, scores, task, first, name) for name in scores.names]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"\n### {task}\n\n{table}{_behind(scores, task, found.seconds_count)}"


def _row(found: Results, scores: Contest, task: str, first: str, name: str) -> list[str]:
    runs = scores.runs[name, task]
    planned = len(found.planned(name, task))
    label = name if len(runs) == planned else f"{name} ({planned - len(runs)} of {planned} lack)"
    if not runs:
        return [label, "0", *[NOTHING] * 10]
    summary = scores.summary(name, task)
    better = None if name == first else scores.improvement(first, name, task)
    speeds = intervals.interquartile_mean(np.array([speed(run) for run in runs]))
    return [
        label,
        str(len(runs)),
        number(max(run.num_envs or 1 for run in runs)),
        number(max(run.steps for run in runs)),
        interval(summary[0].iqm) if summary else NOTHING,
        interval(better.probability, digits=2) if better else NOTHING,
        f"{better.p_value:.2g}" if better else NOTHING,
        interval(speeds, digits=0) if found.seconds_count else NOTHING,
        *_race(found, scores, task, first, name),
    ]


def _race(found: Results, scores: Contest, task: str, first: str, name: str) -> list[str]:
    """Where the other ends its training, and when it and the first are there."""
    sides = scores.runs[first, task], scores.runs[name, task]
    there = None if name == first else race(*sides)
    if there is None:
        return [NOTHING] * 4
    ours, theirs = there.seconds if found.seconds_count else there.steps
    unit = "s" if found.seconds_count else "steps"
    when = f"{number(round(ours, 1))} {unit}" if np.isfinite(ours) else "not reached"
    said = NOTHING
    if theirs > 0:
        ratio = interval(quotient_interval(*sides, found.seconds_count, scores.repetitions), 2)
        said = ratio.replace("inf", "never").replace("never [never, never]", "never")
    return [number(there.target), f"{number(round(theirs, 1))} {unit}", when, said]


def _behind(scores: Contest, task: str, seconds_count: bool) -> str:
    """Says where the first agent is not the best, whoever writes the page."""
    first, *others = [name for name in scores.names if scores.runs[name, task]]
    below, higher, sooner = [], [], []
    for name in others:
        better = scores.improvement(first, name, task)
        if better is not None and better.verdict == "behind":
            below.append(name)
        there = race(scores.runs[first, task], scores.runs[name, task])
        if there is None:
            continue
        ours, theirs = there.seconds if seconds_count else there.steps
        if not np.isfinite(ours):
            higher.append(name)
        elif ours > theirs:
            sooner.append(name)
    said = [
        f"{text} {', '.join(names)}"
        for text, names in (
            ("it ends below", below),
            ("it trains to less than", higher),
            ("it takes longer to the return they end training with than", sooner),
        )
        if names
    ]
    return f"\nWhere {first} is behind: {'; '.join(said)}.\n" if said else ""
