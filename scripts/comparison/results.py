"""The runs of a comparison as they lie on the disk: finished, failed and missing ones."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from comparison.files import PROGRESS, RESULT, RUNS
from comparison.rates import DIVERGED, TOO_SLOW
from comparison.record import FILE as COMPARISON
from npg.errors import ConfigurationError

FINISHED, FAILED, MISSING = "finished", "failed", "missing"
WHOLE_CORE = 0.9  # of the seconds; the system takes its share
Curve = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Run:
    """One training run; what its kind does not have keeps the default.

    Attributes:
        directory: Name of its directory below runs/.
        name: Of the agent or the optimizer.
        task: Environment, or data and model.
        seed: None where the run is missing and its name does not say.
        status: finished, failed or missing.
        rate: Learning rate of an optimizer; None for its default.
        error: Last lines of the traceback, or why there is no result.
        command: What repeats the run.
        machine: Where it ran: `cpu`, `cores`, and runs `at_once` there at most; empty if that was
            not noted.
        seconds: Of training alone.
        cpu_seconds: What the process computed in them; fewer where it had to wait for a core.
        curve: Agents: steps, seconds, mean return of the last training episodes. Optimizers:
            steps, seconds, training loss.
        evaluations: Optimizers: steps, seconds, test loss, test metric.
        final: Agents: returns of deterministic episodes. Optimizers: the metric.
        final_loss: Optimizers: on the training set.
        diagnostics: Curves of steps and values by name, and `kl_bound`, the largest of them.
    """

    directory: str
    name: str
    task: str
    seed: int | None
    status: str
    rate: float | None = None
    error: str = ""
    command: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    steps: int = 0
    seconds: float = math.nan
    cpu_seconds: float = math.nan
    num_envs: int | None = None
    threads: int | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)
    curve: Curve = ()
    final: Sequence[float] = ()
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    step_seconds: float = math.nan
    peak_memory_mb: float = math.nan
    evaluations: Curve = ()
    metric: str = "metric"
    larger_is_better: bool = True
    final_loss: float = math.nan

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.status == FINISHED

    @property
    def waited(self) -> bool:
        """Whether it had to share its core with others, so that its seconds are too many."""
        return self.cpu_seconds < WHOLE_CORE * self.seconds

    @property
    def outcome(self) -> str:
        """The status, or what an optimizer failed by, for no fault of the program's."""
        words = (DIVERGED, TOO_SLOW)
        return next((word for word in words if self.error.startswith(f"{word}: ")), self.status)

    @property
    def score(self) -> float:
        """Mean of `final`; NaN where there is none."""
        return sum(self.final) / len(self.final) if self.final else math.nan

    @property
    def bounded_kls(self) -> list[tuple[float, float]]:
        """The KL of each logged update and what it may be; none where there is no bound."""
        largest = self.diagnostics.get("kl_bound")
        bounds = dict(self.diagnostics.get("target_kl", ()))
        return [
            (kl, bounds.get(step, largest))
            for step, kl in self.diagnostics.get("kl", ())
            if largest and kl is not None and math.isfinite(kl)
        ]

    @property
    def test_loss(self) -> float:
        """The last test loss; NaN where there is none."""
        return self.evaluations[-1][2] if self.evaluations else math.nan


@dataclass(frozen=True)
class Results:
    """A comparison.

    Attributes:
        kind: agent or optimizer.
        about: What comparison.json says.
        runs: In the order in which they were planned.
    """

    kind: str
    about: Mapping[str, Any]
    runs: Sequence[Run]

    @property
    def names(self) -> list[str]:
        """Agents or optimizers, in the order in which they were named."""
        return list(dict.fromkeys(run.name for run in self.runs))

    @property
    def tasks(self) -> list[str]:
        """Environments, or pairs of data and model."""
        return list(dict.fromkeys(run.task for run in self.runs))

    @property
    def seconds_count(self) -> bool:
        """Whether all runs had the same processor and the cores they want: seconds compare."""
        machines = [run.machine for run in self.runs if run.finished and run.machine]
        alike = len({machine.get("cpu") for machine in machines}) <= 1
        free = all(machine.get("at_once", 1) <= machine.get("cores", 1) for machine in machines)
        return bool(self.about.get("wall_clock_counts", False)) and alike and free

    def select(self, name: str, task: str) -> list[Run]:
        """Returns the finished runs of one name on one task."""
        return [run for run in self.planned(name, task) if run.finished]

    def planned(self, name: str, task: str) -> list[Run]:
        """Returns all runs of one name on one task."""
        return [run for run in self.runs if (run.name, run.task) == (name, task)]

    def with_status(self, status: str) -> list[Run]:
        """Returns the runs that ended in one way."""
        return [run for run in self.runs if run.status == status]


def load(directory: Path) -> Results:
    """Reads a comparison, complete or not.

    Args:
        directory: With comparison.json and runs/.

    Returns:
        Every planned run and every run found, the unreadable ones as failed.

    Raises:
        ConfigurationError: If the directory holds no comparison, or one of unknown kind.
    """
    path = directory / COMPARISON
    try:
        about = _read(path)
        kind = about["kind"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"{directory} holds no comparison ({path.name}: {error}); start one with "
            "`compare.py agents` or `compare.py optimizers`"
        ) from error
    if kind not in ("agent", "optimizer"):
        raise ConfigurationError(f"{path}: kind must be agent or optimizer, got {kind!r}")
    found = {p.parent.name: p for p in sorted((directory / RUNS).glob(f"*/{RESULT}"))}
    planned = list(dict.fromkeys([*about.get("planned", []), *found]))
    read = {name: read_run(name, path) for name, path in found.items()}
    runs = [
        read[name] if name in read else _missing(name, directory, kind, list(read.values()))
        for name in planned
    ]
    return Results(kind, about, runs)


def read_run(directory: str, path: Path) -> Run:
    """Reads a run.

    Args:
        directory: Name of its directory.
        path: Its result.json.

    Returns:
        The run, failed if the file cannot be read.
    """
    try:
        return _run(directory, _read(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{RESULT} cannot be read: {type(error).__name__}: {error}"
        return Run(directory, directory, "unknown", None, FAILED, error=reason)


def is_whole(content: Mapping[str, Any]) -> bool:
    """Whether the content of a result.json is that of a run, finished or failed."""
    try:
        return _run("", content).status in (FINISHED, FAILED)
    except (ValueError, KeyError, TypeError):
        return False


def _run(directory: str, content: Mapping[str, Any]) -> Run:
    known = {f.name for f in fields(Run)} - {"directory"}
    content = {k: v for k, v in content.items() if k in known}
    required = {key: content.pop(key) for key in ("name", "task", "seed", "status")}
    # null stands for a number that is none, or for what was not measured.
    content = {k: v for k, v in content.items() if v is not None or k in ("rate", "preset")}
    for name, columns in (("curve", 3), ("evaluations", 4)):
        content[name] = [[_number(x) for x in point] for point in content.get(name, ())]
        if any(len(point) != columns for point in content[name]):
            raise ValueError(f"a point of {name} has not {columns} numbers")
    content["final"] = [_number(x) for x in content.get("final", ())]
    if required["status"] == FINISHED and not content["final"]:
        raise ValueError("a finished run without a final score")
    return Run(directory, **required, **content)


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _missing(directory: str, root: Path, kind: str, others: Sequence[Run]) -> Run:
    """A run without result; name, task and seed are those that the directory's name tells."""
    words = directory.split("_")
    rate = None
    if kind == "optimizer" and len(words) > 3:
        rate = _as(float, words[-1])
        words = words[:-1] if rate is not None else words
    seed = _as(int, words[-1])
    rest = "_".join(words[:-1] if seed is not None else words)
    names = {_slug(run.name): run.name for run in others}
    slug = max((s for s in names if rest.startswith(f"{s}_")), key=len, default=rest.split("_")[0])
    task = rest.removeprefix(f"{slug}_")
    tasks = {_slug(run.task): run.task for run in others}
    return Run(
        directory,
        names.get(slug, slug),
        tasks.get(task, task),
        seed,
        MISSING,
        rate,
        error=_how_far(root / RUNS / directory / PROGRESS),
    )


def _how_far(progress: Path) -> str:
    try:
        return f"no result yet; it had come to step {int(_read(progress)['steps']):,}"
    except (OSError, ValueError, KeyError, TypeError):
        return "not run yet"


def _slug(name: str) -> str:
    """As :func:`comparison.files.run_name` has it."""
    return re.sub(r"[^\w.+-]", "-", name)


def _as(kind: type, word: str) -> Any:
    try:
        return kind(word)
    except ValueError:
        return None
