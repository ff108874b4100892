"""Tables of comparisons in a Markdown page, between marks that name their directories.

<!-- comparison: results/mujoco -->
what stands here is written anew
<!-- end -->
"""

import re
from pathlib import Path

import numpy as np
from common.files import replacing

from comparison import contest, intervals, results
from comparison.contest import Contest
from comparison.intervals import REPETITIONS
from comparison.layout import NOTHING, interval, number
from comparison.race import Race, race
from comparison.results import Results
from comparison.shared_sections import speed
from npg.errors import ConfigurationError

MARKED = re.compile(
    r"(?P<begin><!-- comparison: (?P<place>\S+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)


def write(page: Path, repetitions: int = REPETITIONS) -> list[Path]:
    """Writes the tables of a page anew.

    Args:
        page: Markdown with marks. Directories are relative to it.
        repetitions: Bootstrap resamples.

    Returns:
        The directories of the comparisons.

    Raises:
        ConfigurationError: If the page is not there or has no marks, or a directory holds no
            comparison of agents.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"{page} cannot be read ({error}): name a Markdown page"
        ) from error
    found = [page.parent / marked["place"] for marked in MARKED.finditer(text)]
    if not found:
        raise ConfigurationError(
            f"{page} has no marks: write `<!-- comparison: DIRECTORY -->` and `<!-- end -->` where "
            "the tables are to stand"
        )
    tables = iter([digest(results.load(place), repetitions) for place in found])
    with replacing(page) as temporary:
        temporary.write_text(
            MARKED.sub(lambda marked: marked["begin"] + next(tables) + marked["end"], text),
            encoding="utf-8",
        )
    return found


def digest(found: Results, repetitions: int = REPETITIONS) -> str:
    """Returns a comparison of agents as Markdown: its command, and a table an environment.

    Args:
        found: The runs; the first-named agent is compared with every other.
        repetitions: Bootstrap resamples.

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

{machine.get("cores")} cores ({machine.get("cpu")}), at most {about.get("jobs")} runs at a \
time with one thread each; {_versions(about.get("versions", {}))}.
"""
    return text + "".join(_table(found, scores, task) for task in found.tasks)


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _table(found: Results, scores: Contest, task: str) -> str:
    first = scores.names[0]
    heads = ["agent", "runs", "steps", "final return", f"P({first} above)", "steps/s"]
    heads += ["trains to", "where it is after", f"{first} after", "ratio"]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    rows += [_row(found, scores, task, first, name) for name in scores.names]
    return f"\n### {task}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\n"


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
        number(round(float(intervals.mean_of_middle(speeds)))),
        *(_race(there, found.seconds_count) if there else [NOTHING] * 4),
    ]


def _race(found: Race, seconds_count: bool) -> list[str]:
    """Where the other ends its training, and when it and the first are there."""
    ours, theirs = found.seconds if seconds_count else found.steps
    unit = "s" if seconds_count else "steps"
    target, there = number(found.target), f"{number(round(theirs, 1))} {unit}"
    if not np.isfinite(ours):
        return [target, there, "not reached", NOTHING]
    return [target, there, f"{number(round(ours, 1))} {unit}", f"{ours / theirs:.2f}"]
