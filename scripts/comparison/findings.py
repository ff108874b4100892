"""What the numbers say, in sentences: the first-named agent or optimizer against each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from comparison import notes
from comparison.contest import Contest
from comparison.curves import SECONDS, STEPS
from comparison.intervals import Improvement
from comparison.layout import interval, number
from comparison.race import quotient, race
from comparison.results import Results, Run
from comparison.targets import Target

NOTE = "note"
UNEQUAL = 1.1  # rollouts end a little later than budgets
VERDICTS = {
    "ahead": "{first} is above {second} on {task} with probability {chance}",
    "behind": "{first} is behind {second} on {task}: it is above with probability {chance}",
    "undecided": (
        "Between {first} and {second} on {task} nothing is decided: "
        "{first} is above with probability {chance}"
    ),
}


@dataclass(frozen=True)
class Finding:
    """A sentence.

    Attributes:
        verdict: ahead, behind, undecided or note.
        text: The sentence.
        more: What belongs to it: figures, seconds.
    """

    verdict: str
    text: str
    more: str = ""


def of_agents(results: Results, contest: Contest) -> list[Finding]:
    """Says how the first agent stands to the others, task by task and over all tasks."""
    return [
        *[Finding(NOTE, text) for text in notes.of(results)],
        *_standing(contest, lambda *pair: _sooner(results, contest, *pair)),
        *_bounds(results),
    ]


def of_optimizers(
    results: Results, contest: Contest, targets: Mapping[str, Target]
) -> list[Finding]:
    """Says how the first optimizer stands to the others, each at its best rate.

    Args:
        results: Of optimizers.
        contest: Of the runs at the best rates.
        targets: What is timed, by task.

    Returns:
        The sentences.
    """

    def details(first: str, second: str, task: str) -> str:
        sides = [contest.runs[first, task], contest.runs[second, task]]
        return _cheaper(results, first, second, sides, targets[task])

    return [*[Finding(NOTE, text) for text in notes.of(results)], *_standing(contest, details)]


def _standing(contest: Contest, details) -> Iterator[Finding]:
    first, *others = contest.names or [""]
    for other in others:
        for task in contest.tasks:
            yield _pair(contest, first, other, task, details)
        if len(contest.tasks) > 1:
            overall = contest.improvement(first, other, *contest.tasks)
            if overall is not None:
                where = f"average over {len(contest.tasks)} tasks"
                yield _sentence(overall, first, other, where)


def _pair(contest: Contest, first: str, second: str, task: str, details) -> Finding:
    counts = len(contest.scores(first, task)), len(contest.scores(second, task))
    if min(counts) < 2:
        runs = f"{counts[0]} and {counts[1]} finished runs"
        return Finding("undecided", f"{first} and {second} cannot be compared on {task}: {runs}.")
    found = contest.improvement(first, second, task)
    sides = [contest.summary(name, task) for name in (first, second)]
    ours, theirs = (interval(side[0].iqm) for side in sides)
    if len({*contest.scores(first, task), *contest.scores(second, task)}) == 1:
        text = f"{first} and {second} end alike on {task}: every run at {ours.split()[0]}."
        return Finding("undecided", text, details(first, second, task))
    more = f"Interquartile means: {ours} against {theirs}; {counts[0]} and {counts[1]} runs."
    return _sentence(found, first, second, task, f"{more} {details(first, second, task)}".strip())


def _sentence(found: Improvement, first: str, second: str, task: str, more: str = "") -> Finding:
    chance = interval(found.probability, digits=2)
    text = VERDICTS[found.verdict].format(first=first, second=second, task=task, chance=chance)
    if found.verdict == "undecided" and not found.probability.low <= 0.5 <= found.probability.high:
        text += f"; that so few runs fall so by chance has p = {found.p_value:.2g}"
    return Finding(found.verdict, f"{text}.", more)


def _sooner(results: Results, contest: Contest, first: str, second: str, task: str) -> str:
    """When both mean learning curves reach the end of the second's, and by what budgets."""
    runs = [contest.runs[name, task] for name in (first, second)]
    found = race(*runs)
    if found is None:
        return ""
    aim = f"{second} trains to a mean return of {number(found.target)}"
    if np.isfinite(found.steps[0]):
        said = [_within(*found.steps, "steps")]
        said += [_within(*found.seconds, "s")] if results.seconds_count else []
        text = f"{aim}; {_there(first, said)}."
    else:
        steps = min(run.steps for run in runs[0])
        text = f"{aim}, which {first} does not reach within {number(steps)} steps."
    ours, theirs = (max(run.steps for run in side) for side in runs)
    if max(ours, theirs) > UNEQUAL * min(ours, theirs):
        text += f" Budgets: {number(ours)} steps against {number(theirs)}."
    return text


def _there(first: str, said: Sequence[str]) -> str:
    return f"{first} gets there in {' and '.join(said)}"


def _within(ours: float, theirs: float, unit: str) -> str:
    times = quotient(ours, theirs)
    ratio = f" ({times:.2f} times)" if np.isfinite(times) else ""
    return f"{_rounded(ours)} {unit} against {_rounded(theirs)}{ratio}"


def _rounded(value: float) -> str:
    return number(round(value) if value >= 100 else value)


def _cheaper(
    results: Results, first: str, second: str, sides: Sequence[Sequence[Run]], target: Target
) -> str:
    """What the target takes, and a step."""
    axes = [(STEPS, "steps")] + ([(SECONDS, "s")] if results.seconds_count else [])
    said = []
    for x, unit in axes:
        ours, theirs = (target.median(side, x) for side in sides)
        if np.isfinite(ours) and np.isfinite(theirs):
            said.append(_within(ours, theirs, unit))
    text = f"Test {target}: {_there(first, said)}." if said else ""
    step, their_step = (np.median([run.step_seconds for run in side]) for side in sides)
    if results.seconds_count and np.isfinite([step, their_step]).all() and their_step > 0:
        text += f" A step takes {step / their_step:.2f} times as long as one of {second}."
    return text.strip()


def _bounds(results: Results) -> Iterator[Finding]:
    """How the KL of the updates keeps to its bound."""
    for name in results.names:
        runs = [run for task in results.tasks for run in results.select(name, task)]
        excess = [kl / bound for run in runs for kl, bound in run.bounded_kls]
        if not excess:
            continue
        over = sum(ratio > 1 for ratio in excess)
        largest = f"the largest at {max(excess):.2f} times it"
        if over:
            text = f"{name}'s KL is above its bound in {over:,} of {len(excess):,} logged updates"
        else:
            text = f"{name}'s KL keeps to its bound in all {len(excess):,} logged updates"
        yield Finding(NOTE, f"{text}, {largest}.")
