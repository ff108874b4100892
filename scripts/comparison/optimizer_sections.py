"""The report of a comparison of optimizers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import numpy as np

from comparison import curves, findings, intervals, rates, shared_sections, targets
from comparison.agent_sections import ends, slug
from comparison.contest import Contest
from comparison.curves import SECONDS, STEPS
from comparison.layout import NOTHING, Cell, Column, Section, Table, estimate, figure, number
from comparison.plots import Drawer, Line
from comparison.rates import DIVERGED, TOO_SLOW
from comparison.results import FAILED, Results, Run
from comparison.shared_sections import seconds_label
from comparison.targets import Target

SPAN = 1000  # of losses that are worth seeing, highest to lowest
TASK, OPTIMIZER = Column("task", numeric=False), Column("optimizer", numeric=False)


def sections(results: Results, contest: Contest, drawer: Drawer) -> Iterable[Section]:
    """Gives the report's sections, one by one, since the pictures take their time.

    Args:
        results: Of optimizers.
        contest: Of the runs at the best rates.
        drawer: Of pictures.

    Yields:
        The sections from top to bottom.
    """
    chosen = targets.choose(contest, results.about.get("target") or {})
    found = findings.of_optimizers(results, contest, chosen)
    yield Section("Findings", "findings", findings=found)
    yield _scores(results, contest)
    yield _progress(results, contest, drawer)
    yield _costs(results, contest, chosen)
    yield _sensitivity(results, drawer)
    yield shared_sections.improvements(contest, "task")
    yield shared_sections.runs(results)
    yield shared_sections.settings(results)


def _pairs(contest: Contest) -> list[tuple[str, str, Sequence[Run]]]:
    pairs = [(task, name) for task in contest.tasks for name in contest.names]
    return [(t, n, contest.runs[n, t]) for t, n in pairs if contest.runs[n, t]]


def _scores(results: Results, contest: Contest) -> Section:
    rows = []
    for task, name in product(contest.tasks, contest.names):
        runs = contest.runs[name, task]
        if not runs:
            rows += _no_rate(task, name, results)
            continue
        raw, normalised = contest.summary(name, task) or (None, None)
        rows.append(
            [
                Cell(task),
                Cell(name),
                figure(len(runs)),
                _rate(runs[0].rate),
                estimate(_iqm([run.final_loss for run in runs], contest)),
                estimate(_iqm([run.test_loss for run in runs], contest)),
                Cell(runs[0].metric.replace("_", " ")),
                estimate(raw and raw.iqm),
                estimate(normalised and normalised.gap, digits=3),
            ]
        )
    columns = [
        TASK,
        OPTIMIZER,
        Column("runs", "Finished, at the best rate."),
        Column(
            "best rate",
            "Of the learning rates tried, the one of the lowest training loss; where none got "
            "through with every seed, what became of most runs that did not finish.",
        ),
        Column("training loss", "Interquartile mean at the end over seeds, on the training set."),
        Column("test loss", "Interquartile mean at the end over seeds."),
        Column("metric", numeric=False),
        Column("IQM", "Interquartile mean of the metric at the end over seeds."),
        Column(
            "optimality gap",
            "0 is as good as the best run of any optimizer at its best rate, "
            "1 as bad as the worst.",
        ),
    ]
    text = [
        "Each optimizer at its best learning rate: that of the lowest final loss on the training "
        "set, the mean over seeds, of the rates that got through with every seed. In brackets 95 % "
        "bootstrap intervals."
    ]
    if len(results.tasks) > 1:
        text.append("Metrics differ between tasks and are not averaged.")
    table = Table("At the best rate", columns, rows)
    return Section("Results", "scores", text, tables=[table])


def _no_rate(task: str, name: str, results: Results) -> Iterable[list[Cell]]:
    """The row of an optimizer that has runs, but no rate that got through: why not."""
    runs = results.planned(name, task)
    outcomes = Counter(run.outcome for run in runs if not run.finished)
    if runs:
        why = outcomes.most_common(1)[0][0] if outcomes else NOTHING
        yield [Cell(task), Cell(name), figure(0), Cell(why), *[Cell(NOTHING)] * 5]


def _progress(results: Results, contest: Contest, drawer: Drawer) -> Section:
    plots = []
    for task in contest.tasks:
        metric = next((r.metric for t, _, runs in _pairs(contest) for r in runs if t == task), "")
        metric = metric.replace("_", " ")
        for y, label in ((2, "test loss"), (3, metric), (None, "training loss")):
            for x, what in ((STEPS, "steps"), (SECONDS, seconds_label(results))):
                lines = _lines(contest, task, x, y)
                alt = f"{label[:1].upper()}{label[1:]} on {task} against {what}. {ends(lines)}"
                log = ("x" if x == SECONDS else "") + ("" if label == "accuracy" else "y")
                stem = f"{label.replace(' ', '_')}_{slug(task)}_{what.split()[0]}"
                plot = drawer.lines(stem, task, alt, lines, (what, label), log)
                plots += [plot] if plot else []
    text = [
        "Interquartile mean over seeds at the best rate, with 95 % bootstrap bands. Against "
        "seconds, every step stands at its mean time over seeds."
    ]
    if not results.seconds_count:
        text.append(shared_sections.NO_SECONDS)
    return Section("Curves", "learning", text, plots=plots)


def _lines(contest: Contest, task: str, x: int, y: int | None) -> list[Line]:
    lines = []
    for index, name in enumerate(contest.names):
        runs = contest.runs[name, task]
        all_curves = [run.curve if y is None else run.evaluations for run in runs]
        band = curves.over_seeds(all_curves, 2 if y is None else y, x == SECONDS)
        if band is not None:
            later = band.at > 0 if x == SECONDS else slice(None)  # a logarithmic axis has no 0
            lines.append(Line(name, index, band.at[later], band.estimate[later]))
    return lines


def _costs(results: Results, contest: Contest, chosen: Mapping[str, Target]) -> Section:
    rows = []
    for task, name, runs in _pairs(contest):
        target = chosen[task]
        count = sum(np.isfinite(target.first(run, STEPS)) for run in runs)
        rows.append(
            [
                Cell(task),
                Cell(name),
                Cell(str(target), target.value),
                Cell(f"{count} of {len(runs)}", count),
                figure(target.median(runs, STEPS)),
                figure(target.median(runs, SECONDS)),
                figure(1000 * float(np.median([run.step_seconds for run in runs]))),
                figure(float(np.median([run.peak_memory_mb for run in runs]))),
            ]
        )
    columns = [
        TASK,
        OPTIMIZER,
        Column("target", "On the test data.", numeric=False),
        Column("reached", "Runs that came to it."),
        Column("steps to target", "Of the median run; ∞ if less than half of the runs came to it."),
        Column(seconds_label(results, "seconds to target"), "Likewise, of training alone."),
        Column(seconds_label(results, "ms a step"), "Median."),
        Column(
            "peak MB in steps",
            "The most in memory during training steps, beyond libraries and data: model, "
            "gradients, states of the optimizer, what a step needs. Evaluations do not count.",
        ),
    ]
    own = (
        "the test loss of the median run of the optimizer that ends highest: all that got through "
        "have reached it."
    )
    asked = [target.asked for target in chosen.values()]
    text = [f"The target is {own}"]
    if any(asked):
        text = ["The target is what was asked for."]
        text += [] if all(asked) else [f"Where nothing was asked for that is measured, it is {own}"]
    if not results.seconds_count:
        text.append(shared_sections.NO_SECONDS)
    return Section("Time and memory", "costs", text, tables=[Table("Costs", columns, rows)])


def _sensitivity(results: Results, drawer: Drawer) -> Section:
    rows, plots = [], []
    for task in results.tasks:
        lines = []
        for index, name in enumerate(results.names):
            runs = results.planned(name, task)
            losses = rates.final_losses(runs)
            if not losses:
                continue
            rows.append(_spread(task, name, runs, losses))
            through = [rate for rate, loss in losses.items() if rate and np.isfinite(loss)]
            if through:
                ends = [[r.final_loss for r in runs if r.finished and r.rate == x] for x in through]
                y = [[np.median(end), min(end), max(end)] for end in ends]
                lines.append(Line(name, index, np.array(through), np.array(y)))
        alt = f"Final training loss on {task} against the learning rate. " + "; ".join(
            f"{x.label} lowest {number(x.y[:, 0].min())} at {number(x.x[x.y[:, 0].argmin()])}"
            for x in lines
        )
        labels = ("learning rate", "final training loss")
        plot = drawer.lines(
            f"rates_{slug(task)}", task, alt, lines, labels, "xy", points=True, span=SPAN
        )
        plots += [plot] if plot else []
    columns = [
        TASK,
        OPTIMIZER,
        Column("rates", "Learning rates tried."),
        Column("best rate", "A star: the first or the last one tried."),
        Column("loss at best", "On the training set at the end, the mean over seeds."),
        Column("median over rates", "Of these means, of rates that got through with every seed."),
        Column("worst"),
        Column("worst / best"),
        Column("diverged", "Runs whose loss was no finite number any more."),
        Column("too slow", "Runs with a step longer than the budget of seconds, which ends them."),
        Column("failed", "Otherwise."),
    ]
    text = [
        "Median over seeds at every rate, and the range around it. A rate at which a run diverged, "
        f"was too slow or failed is not drawn, and the axis ends at {SPAN:,} times the lowest loss."
    ]
    table = Table("Spread over learning rates", columns, rows)
    return Section("Learning-rate sensitivity", "rates", text, plots=plots, tables=[table])


def _spread(
    task: str, name: str, runs: Sequence[Run], losses: Mapping[float | None, float]
) -> list[Cell]:
    through = {rate: loss for rate, loss in losses.items() if np.isfinite(loss)}
    outcomes = Counter(run.outcome for run in runs)
    counts = [
        *(
            Cell(f"{outcomes[word]} of {len(runs)}", outcomes[word])
            for word in (DIVERGED, TOO_SLOW)
        ),
        figure(outcomes[FAILED]),
    ]
    about = [Cell(task), Cell(name), figure(len(losses))]
    if not through:
        return [*about, *(Cell(NOTHING) for _ in range(5)), *counts]
    best = min(through, key=through.__getitem__)
    at_edge = len(losses) > 1 and best in (next(iter(losses)), list(losses)[-1])
    worst = max(through.values())
    return [
        *about,
        figure(best, f"{number(best)}*" if best and at_edge else "" if best else "default"),
        figure(through[best]),
        figure(float(np.median(list(through.values())))),
        figure(worst),
        figure(worst / through[best] if through[best] > 0 else None),
        *counts,
    ]


def _rate(rate: float | None) -> Cell:
    return figure(rate, "default" if rate is None else "")


def _iqm(values: Sequence[float], contest: Contest) -> intervals.Interval | None:
    finite = np.array([value for value in values if np.isfinite(value)])
    return intervals.interquartile_mean(finite, contest.repetitions) if len(finite) else None
