"""What to know about the runs of a comparison before their figures are read, in sentences."""

from collections import Counter
from collections.abc import Iterator

from comparison.rates import DIVERGED, TOO_SLOW
from comparison.results import FAILED, MISSING, WHOLE_CORE, Results

NAMED = 6  # runs in a sentence; the table has them all
ALIKE = 1.5  # how much faster a run may be than another of the same kind


def of(results: Results) -> list[str]:
    """Says what failed, is missing, does not apply, or was not made under like conditions.

    Args:
        results: A comparison.

    Returns:
        Sentences; none where nothing is to be said.
    """
    return [
        *_incomplete(results),
        *_mixed(results),
        *_crowded(results),
        *_uneven(results),
        *(
            f"{refused['name']} does not apply to {refused['task']}: {refused['reason']}"
            for refused in results.about.get("does_not_apply", ())
        ),
    ]


def _incomplete(results: Results) -> Iterator[str]:
    """The rest stands on fewer runs than planned."""
    failed = [run for run in results.runs if run.outcome == FAILED]
    missing = results.with_status(MISSING)
    are = "is" if len(missing) == 1 else "are"
    for runs, verb in ((failed, "failed"), (missing, f"{are} missing")):
        if runs:
            named = [run.directory for run in runs[:NAMED]]
            named += [f"{len(runs) - NAMED} more"] if len(runs) > NAMED else []
            yield f"{len(runs)} of {len(results.runs)} runs {verb}: {', '.join(named)}."
    diverged = sum(run.outcome == DIVERGED for run in results.runs)
    if diverged:
        yield f"{diverged} of {len(results.runs)} runs diverged, at rates that are too high."
    slow = Counter(f"{r.name} on {r.task}" for r in results.runs if r.outcome == TOO_SLOW)
    for which, count in slow.items():
        yield f"{which} is too slow: a step takes longer than the budget, in {count} of its runs."


def _mixed(results: Results) -> Iterator[str]:
    """A preset may have been changed between the runs of an unfinished comparison."""
    for name in results.names:
        for task in results.tasks:
            runs = results.select(name, task)
            keys = {key for run in runs for key in run.arguments}
            mixed = sorted(
                key for key in keys if len({str(run.arguments.get(key)) for run in runs}) > 1
            )
            if mixed and results.kind == "agent":
                yield (
                    f"The runs of {name} on {task} differ in {', '.join(mixed)}: their settings "
                    "were changed in between, and figures over them mean little."
                )


def _crowded(results: Results) -> Iterator[str]:
    waited = [run for run in results.runs if run.finished and run.waited]
    if waited and results.seconds_count:
        yield (
            f"{len(waited)} of {len(results.runs)} runs had less than {WHOLE_CORE:.0%} of a core: "
            "something else kept the machine busy, and their seconds are too many."
        )


def _uneven(results: Results) -> Iterator[str]:
    """Work on the other cores takes memory and clock from a run whose core is its own."""
    if results.kind != "agent":  # an optimizer's steps may differ in the evaluations they take
        return
    spread = {}
    for name in results.names:
        for task in results.tasks:
            paces = [r.seconds / r.steps for r in results.select(name, task) if r.steps]
            paces = [pace for pace in paces if pace > 0]
            if paces:
                spread[f"{name} on {task}"] = max(paces) / min(paces)
    largest = max(spread, key=spread.__getitem__, default=None)
    if largest is not None and results.seconds_count and spread[largest] > ALIKE:
        yield (
            f"Runs of one kind were not equally fast, by {spread[largest]:.1f} times for "
            f"{largest}: the machine was not quiet, and seconds are as uncertain as that."
        )
