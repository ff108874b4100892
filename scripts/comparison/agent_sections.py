"""The report of a comparison of agents."""

from collections.abc import Iterable, Sequence

import numpy as np

from comparison import curves, findings, intervals, shared_sections
from comparison.contest import Contest
from comparison.curves import SECONDS, STEPS
from comparison.layout import (
    NOTHING,
    Cell,
    Column,
    Fold,
    Section,
    Table,
    estimate,
    figure,
    interval,
    number,
)
from comparison.plots import Drawer, Line, Plot
from comparison.results import Results, Run
from comparison.shared_sections import seconds_label, speed

SCORES = (
    Column("IQM", "Interquartile mean of the final deterministic evaluation over seeds."),
    Column("median", "Over seeds; over environments: of the means of each."),
    Column("optimality gap", "How far normalised scores stay below 1, the best run, on average."),
)
LOG_FROM = 4  # times the shortest curve the longest may be on a linear axis
DIAGNOSTICS = {
    "kl": "KL divergence of an update",
    "cg_residual": "residual of conjugate gradient",
    "accepted_step": "accepted step",
    "explained_variance": "explained variance",
}


def sections(results: Results, contest: Contest, drawer: Drawer) -> Iterable[Section]:
    """Gives the report's sections, one by one, since the pictures take their time.

    Args:
        results: Of agents.
        contest: Of their final scores.
        drawer: Of pictures.

    Yields:
        The sections from top to bottom.
    """
    yield Section("Findings", "findings", findings=findings.of_agents(results, contest))
    yield _scores(results, contest, drawer)
    if len(results.tasks) > 1:
        yield _overall(contest, drawer)
    yield shared_sections.improvements(contest, "environment")
    yield _learning(results, drawer)
    yield _diagnostics(results, drawer)
    yield shared_sections.runs(results)
    yield shared_sections.settings(results)


def _scores(results: Results, contest: Contest, drawer: Drawer) -> Section:
    rows, plots = [], []
    for task in contest.tasks:
        marks = []
        for index, name in enumerate(contest.names):
            planned = sum((r.name, r.task) == (name, task) for r in results.runs)
            if not planned:
                continue
            runs = contest.runs[name, task]
            summary = contest.summary(name, task)
            raw, normalised = summary or (None, None)
            speeds = np.array([speed(run) for run in runs])
            speeds = speeds[np.isfinite(speeds)]
            rate = intervals.interquartile_mean(speeds) if len(speeds) else None
            rows.append(
                [
                    Cell(task),
                    Cell(name),
                    Cell(f"{len(contest.scores(name, task))} of {planned}", len(runs)),
                    estimate(raw and raw.iqm),
                    estimate(raw and raw.median),
                    estimate(normalised and normalised.gap, digits=3),
                    estimate(rate),
                ]
            )
            if raw:
                iqm = raw.iqm
                marks.append((name, index, (iqm.value, iqm.low, iqm.high)))
        alt = f"Interquartile mean of the final returns on {task}: " + "; ".join(
            f"{label} {number(value)} from {number(low)} to {number(high)}"
            for label, _, (value, low, high) in marks
        )
        plots.append(drawer.intervals(f"scores_{slug(task)}", task, alt, marks, "final return"))
    columns = [
        Column("environment", numeric=False),
        Column("agent", numeric=False),
        Column("runs", "Finished of planned."),
        *SCORES,
        Column(seconds_label(results, "steps/s"), "Environment steps per second of training."),
    ]
    text = [
        "The score of a run is its mean return over the deterministic episodes after training. "
        "Figures are over seeds, in brackets 95 % bootstrap intervals."
    ]
    table = Table("Final scores", columns, rows)
    return Section("Scores", "scores", text, plots=_drawn(plots), tables=[table])


def _overall(contest: Contest, drawer: Drawer) -> Section:
    rows, lines = [], []
    complete = {name: contest.normalised(name) for name in contest.names}
    known = [scores for tasks in complete.values() if tasks for scores in tasks]
    thresholds = np.linspace(min([0.0, *(s.min() for s in known)]), 1.0, 81)
    for index, (name, tasks) in enumerate(complete.items()):
        if tasks is None:
            rows.append(
                [
                    Cell(name),
                    *(Cell(NOTHING) for _ in SCORES),
                    Cell("an environment without a finished run"),
                ]
            )
            continue
        found = intervals.aggregates(*tasks, repetitions=contest.repetitions)
        figures = [estimate(x, digits=3) for x in (found.iqm, found.median, found.gap)]
        rows.append([Cell(name), *figures, Cell("")])
        shares = intervals.profile(tasks, thresholds, contest.repetitions)
        lines.append(Line(name, index, thresholds, shares))
    alt = "Performance profile: which share of the runs scores above a normalised score. " + ends(
        [Line(x.label, x.index, x.x[:41], x.y[:41]) for x in lines], "halfway"
    )
    labels = ("normalised score τ", "share of runs above τ")
    plot = drawer.lines("profiles", "Performance profiles", alt, lines, labels)
    scales = "; ".join(
        f"{task} {number(scale.low)} to {number(scale.high)}"
        for task, scale in contest.scales.items()
    )
    text = [
        "Normalised scores: 0 is the median return at the first point of the learning curves of "
        "all runs, of policies that have hardly learned; 1 is the final score of the best run of "
        "any agent. Where no run got above its start, the worst final score is 0. The scales: "
        f"{scales}."
    ]
    columns = [Column("agent", numeric=False), *SCORES, Column("remark", numeric=False)]
    table = Table("All environments, normalised scores", columns, rows)
    return Section("Over environments", "overall", text, plots=_drawn([plot]), tables=[table])


def _learning(results: Results, drawer: Drawer) -> Section:
    plots = []
    text = [
        "Mean return of the last training episodes: interquartile mean over seeds, with 95 % "
        "bootstrap bands, where all finished runs of an agent have values. Against seconds, every "
        "step stands at its mean time over seeds. Where an agent's curve is more than "
        f"{LOG_FROM} times as long as another's, the axis is logarithmic."
    ]
    if not results.seconds_count:
        text.append(shared_sections.NO_SECONDS)
    for task in results.tasks:
        for x, what in ((STEPS, "environment steps"), (SECONDS, seconds_label(results))):
            lines = over_seeds(results, task, lambda run: run.curve, 2, seconds=x == SECONDS)
            alt = f"Training return on {task} against {what}. " + ends(lines)
            name = f"learning_{slug(task)}_{'steps' if x == STEPS else 'seconds'}"
            labels = (what, "return in training")
            log = "x" if _lengths_differ(lines) else ""
            plots.append(drawer.lines(name, task, alt, lines, labels, log, engineering=x == STEPS))
    return Section("Learning curves", "learning", text, plots=_drawn(plots))


def _lengths_differ(lines: Sequence[Line]) -> bool:
    """Whether one curve would fill the picture and leave another its margin."""
    last = [line.x[-1] for line in lines]
    return bool(last) and max(last) > LOG_FROM * min(last)


def _diagnostics(results: Results, drawer: Drawer) -> Section:
    rows, folds = [], []
    for task in results.tasks:
        plots = []
        for key, label in DIAGNOSTICS.items():
            lines = over_seeds(
                results,
                task,
                lambda run, key=key: run.diagnostics.get(key) or (),
                1,
                bound="kl_bound" if key == "kl" else "",
            )
            alt = f"{label[0].upper()}{label[1:]} on {task}. {ends(lines)}"
            log = "y" if key in ("kl", "cg_residual") else ""
            labels = ("environment steps", label)
            plots.append(
                drawer.lines(
                    f"{key}_{slug(task)}",
                    f"{task}: {label}",
                    alt,
                    lines,
                    labels,
                    log,
                    engineering=True,
                )
            )
        if _drawn(plots):
            folds.append(Fold(f"Diagnostics on {task}", plots=_drawn(plots)))
        rows += [
            row
            for name in results.names
            if (row := _diagnosed(task, name, results.select(name, task)))
        ]
    columns = [
        Column("environment", numeric=False),
        Column("agent", numeric=False),
        Column("KL, median", "Of the logged updates of all seeds."),
        Column("KL, largest"),
        Column("bound", "What the KL of an update may be, at most."),
        Column("above", "Share of the logged updates whose KL is above the bound."),
        Column("CG residual", "Median."),
        Column("accepted step", "Mean; 0 is an update that was refused."),
        Column("explained variance", "Median over seeds of the last value."),
    ]
    text = [
        "What the agents' loggers had; dotted lines are the bounds on the KL, the largest where "
        "they change in training. The KL of sb3-contrib's TRPO is an average over action "
        "dimensions: times their number it compares with the joint KL of the others."
    ]
    tables = [Table("Updates", columns, rows)] if rows else []
    return Section("Diagnostics of updates", "diagnostics", text, tables=tables, folds=folds)


def _diagnosed(task: str, name: str, runs: Sequence[Run]) -> list[Cell] | None:
    values = {
        key: [[v for _, v in run.diagnostics.get(key) or () if v is not None] for run in runs]
        for key in DIAGNOSTICS
    }
    if not any(run for found in values.values() for run in found):
        return None
    kl, residual, accepted = (
        np.array([v for run in values[key] for v in run], dtype=float)
        for key in ("kl", "cg_residual", "accepted_step")
    )
    last = [run[-1] for run in values["explained_variance"] if run]
    bounds = {run.diagnostics.get("kl_bound") for run in runs} - {None}
    bound = max(bounds, default=None)
    bounded = [pair for run in runs for pair in run.bounded_kls]
    above = float(np.mean([kl > limit for kl, limit in bounded])) if bounded else np.nan
    return [
        Cell(task),
        Cell(name),
        figure(float(np.median(kl)) if len(kl) else None),
        figure(float(kl.max()) if len(kl) else None),
        figure(bound),
        figure(above, "" if np.isnan(above) else f"{100 * above:.1f} %"),
        figure(float(np.median(residual)) if len(residual) else None),
        figure(float(accepted.mean()) if len(accepted) else None),
        figure(float(np.median(last)) if last else None),
    ]


def over_seeds(
    results: Results, task: str, curve, y: int, seconds: bool = False, bound: str = ""
) -> list[Line]:
    """Makes a line of each name's finished runs on a task.

    Args:
        results: All runs.
        task: Which.
        curve: Function of a run that returns its curve.
        y: Column of the values.
        seconds: Whether the points are seconds.
        bound: Diagnostic that bounds the values, if any.

    Returns:
        The lines of those that have values.
    """
    lines = []
    for index, name in enumerate(results.names):
        runs = results.select(name, task)
        band = curves.over_seeds((curve(run) for run in runs), y, seconds)
        if band is not None:
            limit = runs[0].diagnostics.get(bound) if bound else None
            lines.append(Line(name, index, band.at, band.estimate, limit))
    return lines


def ends(lines: Sequence[Line], where: str = "at the end") -> str:
    """Says in words where lines end."""
    said = []
    for line in lines:
        value, low, high = line.y[-1]
        said.append(f"{line.label} {interval(intervals.Interval(value, low, high))}")
    return f"{where.capitalize()}: {'; '.join(said)}." if said else ""


def slug(task: str) -> str:
    """Returns a task's name for a file."""
    return "".join(c if c.isalnum() or c in "-." else "-" for c in task)


def _drawn(plots: Iterable[Plot | None]) -> list[Plot]:
    return [plot for plot in plots if plot is not None]
