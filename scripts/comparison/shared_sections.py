"""Parts that the reports of agents and of optimizers share: who beats whom, runs, settings."""

import math
from collections import Counter
from collections.abc import Sequence

from comparison.contest import Contest
from comparison.layout import (
    NOTHING,
    Cell,
    Column,
    Fold,
    Section,
    Table,
    estimate,
    figure,
    number,
)
from comparison.results import Results, Run

# In comparison.json; what remains are settings that all runs share.
SHOWN_ELSEWHERE = {
    *("kind", "command", "started", "machine", "versions", "jobs", "threads"),
    *("wall_clock_counts", "planned", "does_not_apply", "target"),
}
STATUS_KEYS = {"failed": 0, "missing": 1, "finished": 2}
NO_SECONDS = (
    "Seconds are not comparable here: more threads ran at a time than a machine has cores "
    "(jobs × threads > cores), or the runs had different processors."
)


def seconds_label(results: Results, label: str = "seconds") -> str:
    """Returns a label of seconds that says if they mean nothing."""
    return label if results.seconds_count else f"{label} (not comparable)"


def improvements(contest: Contest, task_word: str) -> Section:
    """Tables of the probabilities of improvement: the first name's, and all."""
    columns = [
        Column(task_word, numeric=False),
        Column("first", numeric=False),
        Column("second", numeric=False),
        Column(
            "P(first > second)",
            "Probability that a run of the first ends above one of the "
            "second, with 95 % interval; equal ones count half.",
        ),
        Column("p", "Mann–Whitney test, two-sided; over all, stratified by task."),
        Column("verdict", "Decided if the interval leaves out 0.5 and p < 0.05.", numeric=False),
    ]
    groups = [(task, [task]) for task in contest.tasks]
    if len(contest.tasks) > 1:
        groups.append(("all", list(contest.tasks)))

    def table(caption: str, pairs: Sequence[tuple[str, str]]) -> Table:
        rows = []
        for label, tasks in groups:
            for first, second in pairs:
                found = contest.improvement(first, second, *tasks)
                cells = [Cell(label), Cell(first), Cell(second)]
                if found is None:
                    rows.append([*cells, Cell(NOTHING), Cell(NOTHING), Cell("no runs")])
                    continue
                verdict = Cell(found.verdict, kind=found.verdict)
                chance = estimate(found.probability, digits=2)
                rows.append([*cells, chance, figure(found.p_value), verdict])
        return Table(caption, columns, rows)

    first = contest.names[0]
    led = [pair for pair in contest.pairs() if pair[0] == first]
    every = contest.pairs()
    folds = []
    if len(every) > len(led):
        folds = [Fold("Every pair", tables=[table("Probability of improvement, all", every)])]
    return Section(
        "Probability of improvement",
        "improvement",
        tables=[table(f"{first} against each other", led)] if led else [],
        folds=folds,
    )


def runs(results: Results) -> Section:
    """The table of all runs, whatever became of them."""
    agent = results.kind == "agent"
    columns = [
        Column("status", numeric=False),
        Column("environment" if agent else "task", numeric=False),
        Column("agent" if agent else "optimizer", numeric=False),
        *([] if agent else [Column("rate", "Learning rate.")]),
        Column("seed"),
        Column("score" if agent else "metric", "At the end."),
        Column("steps"),
        Column(seconds_label(results), "Of training alone."),
        Column("steps/s"),
        Column("command and error", "Unfolds.", numeric=False),
    ]
    rows = [
        [
            Cell(
                run.outcome,
                STATUS_KEYS.get(run.status, 3),
                run.status,
            ),
            Cell(run.task),
            Cell(run.name),
            *([] if agent else [_rate(run)]),
            figure(math.nan if run.seed is None else run.seed),
            figure(run.score),
            figure(run.steps or math.nan),
            figure(run.seconds),
            figure(speed(run)),
            Cell(_summary(run), folded=_details(run)),
        ]
        for run in sorted(results.runs, key=lambda run: STATUS_KEYS.get(run.status, 3))
    ]
    text = ["A command repeats one run. Failed and missing runs are in no average."]
    return Section("Runs", "runs", text, tables=[Table("All runs", columns, rows)])


def speed(run: Run) -> float:
    """Returns steps per second of training."""
    return run.steps / run.seconds if run.seconds > 0 else math.nan


def settings(results: Results) -> Section:
    """Hyper-parameters side by side, one table a task, and what it all ran on."""
    tables = [_arguments(results, task) for task in results.tasks]
    folds = [Fold(table.caption, tables=[table]) for table in tables if table.rows]
    return Section("Settings", "settings", tables=[_circumstances(results)], folds=folds)


def _arguments(results: Results, task: str) -> Table:
    groups = {name: results.select(name, task) for name in results.names}
    groups = {name: runs for name, runs in groups.items() if runs}
    keys = {key: None for group in groups.values() for run in group for key in run.arguments}
    rows = [
        [Cell(key), *(_values(r.arguments.get(key) for r in group) for group in groups.values())]
        for key in sorted(keys)
    ]
    if any(run.preset for group in groups.values() for run in group):
        presets = [_values(run.preset for run in group) for group in groups.values()]
        rows.insert(0, [Cell("preset"), *presets])
    columns = [Column("argument", numeric=False)]
    columns += [Column(name, numeric=False) for name in groups]
    return Table(f"Hyper-parameters on {task}", columns, rows)


def _values(values) -> Cell:
    """What the seeds, or rates, of one column have in an argument; seldom more than one value."""
    shown = dict.fromkeys(NOTHING if value is None else str(value) for value in values)
    return Cell(", ".join(shown))


def _circumstances(results: Results) -> Table:
    about = results.about
    entries = {
        "command": about.get("command"),
        "started": about.get("started"),
        **{name: value for name, value in about.items() if name not in SHOWN_ELSEWHERE},
        "seeds": ", ".join(str(s) for s in sorted({r.seed for r in results.runs} - {None})),
        "jobs at a time": about.get("jobs"),
        "threads a job": about.get("threads"),
        **about.get("machine", {}),
        "processors of the runs": _processors(results),
        **about.get("versions", {}),
    }
    rows = [
        [Cell(str(name)), Cell(number(value) if isinstance(value, int) else str(value))]
        for name, value in entries.items()
        if value not in (None, "")
    ]
    columns = [Column("what", numeric=False), Column("value", numeric=False)]
    return Table("Machine, versions, budget", columns, rows)


def _processors(results: Results) -> str:
    """Names the processors if there are several, with the runs on each."""
    counted = Counter(run.machine["cpu"] for run in results.runs if "cpu" in run.machine)
    named = (f"{processor} ({number(runs)} runs)" for processor, runs in counted.items())
    return ", ".join(named) if len(counted) > 1 else ""


def _rate(run: Run) -> Cell:
    return figure(run.rate, "default" if run.rate is None else "")


def _summary(run: Run) -> str:
    if not run.error:
        return "command"
    last = run.error.strip().splitlines()[-1]
    return last if len(last) <= 60 else f"{last[:57]}…"


def _details(run: Run) -> str:
    return "\n\n".join(text.strip() for text in (run.command, run.error) if text.strip())
