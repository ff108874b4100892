"""The runs of a comparison of optimizers, and what does not apply."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, product

from classification import session
from common import settings

from comparison import files, optimizer_run, rates
from comparison.job import Job, compare_command
from comparison.optimizer_options import OptimizerRun, Optimizers, Training
from npg import optim
from npg.errors import ConfigurationError


@dataclass(frozen=True)
class Refusal:
    """An optimizer that does not apply to a task.

    Attributes:
        name: Of the optimizer.
        task: Data and model.
        reason: In the optimizer's words.
    """

    name: str
    task: str
    reason: str


def plan(options: Optimizers) -> tuple[list[Job], list[Refusal]]:
    """Lists the runs; whatever can be seen to be wrong is said before the first one starts.

    Args:
        options: Of the comparison.

    Returns:
        The runs, seed by seed, so that an unfinished comparison has something of everything; and
        what is not run, since the optimizer refuses the model.

    Raises:
        ConfigurationError: If a name or a number cannot be used, or data are missing.
    """
    optimizer_run.check(options)
    settings.at_least(options, 1, "rates", "seeds")
    settings.at_least(options.execution, 1, "jobs")
    for option in ("data", "models", "optimizers"):
        if not getattr(options, option):
            raise ConfigurationError(f"{option} is empty: name one at least")
    swept = {name: rates.swept(name, options.rates) for name in _names(options.optimizers)}
    shared = {field.name: getattr(options, field.name) for field in fields(Training)}
    if options.data_dir is not None:  # another machine starts elsewhere
        shared["data_dir"] = options.data_dir.absolute()
    metrics: set[str] = set()
    applicable: list[OptimizerRun] = []
    refused: list[Refusal] = []
    for data in dict.fromkeys(options.data):
        runs = [
            OptimizerRun(optimizer=name, data=data, model=model, **shared)
            for model, name in product(dict.fromkeys(options.models), swept)
        ]
        refusals, known = _tried(runs)
        metrics |= known
        told = {(refusal.name, refusal.task) for refusal in refusals}
        applicable += [run for run in runs if (run.optimizer, run.task) not in told]
        refused += refusals
    _check_target(options.target, metrics)
    jobs = [
        _job(options, replace(run, rate=rate, seed=seed))
        for seed, run in product(range(options.seeds), applicable)
        for rate in swept[run.optimizer]
    ]
    return jobs, refused


def _names(given: Sequence[str]) -> list[str]:
    """Returns the optimizers that are meant, each once."""
    meant = [optim.names() if name == "all" else [name] for name in given]
    return list(dict.fromkeys(chain.from_iterable(meant)))


def _tried(runs: Sequence[OptimizerRun]) -> tuple[list[Refusal], set[str]]:
    """Builds some runs on the same data: which cannot be, and the metrics of the others."""
    samples = session.load(optimizer_run.for_classify(runs[0]))
    refusals, metrics = [], set()
    for run in runs:
        try:
            metrics.add(session.build(optimizer_run.for_classify(run), samples).task.metric)
        except ConfigurationError as error:
            refusals.append(Refusal(run.optimizer, run.task, str(error)))
    return refusals, metrics


def _check_target(target: Mapping[str, float], metrics: Collection[str]) -> None:
    for quantity, value in target.items():
        if not math.isfinite(value):
            raise ConfigurationError(f"target {quantity} must be finite, got {value}")
        if quantity == "accuracy" and not 0 <= value <= 1:
            raise ConfigurationError(f"target accuracy must be a share from 0 to 1, got {value:g}")
        if metrics and quantity not in {"loss", *metrics}:
            raise ConfigurationError(
                f"target {quantity} is measured on none of the models: name loss or "
                f"{' or '.join(sorted(metrics))}"
            )


def _job(options: Optimizers, run: OptimizerRun) -> Job:
    name = files.run_name(run.optimizer, run.task, run.seed, f"{run.rate:g}")
    directory = options.output / files.RUNS / name
    words = [*optimizer_run.words(run), "--output", directory]
    return Job(name, compare_command(*words), directory, optimizer_run.about(run))
