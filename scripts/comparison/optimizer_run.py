"""One run of an optimizer, in this process: training, evaluation, result.json."""

import dataclasses
import math
import sys
import traceback
from typing import Any

import torch
from classification import options as classification
from classification import session
from common import settings
from common.failures import configuration_errors
from common.interrupts import Interrupts
from common.memory import PeakMemory
from common.report import command
from torch import nn

from comparison import files, process, rates
from comparison.optimizer_options import OptimizerRun, Training
from comparison.optimizer_recorder import Recorder
from comparison.time_limit import TimeLimit
from npg.errors import ConfigurationError, NumericalError

THREADS = 1
LAST_LINES = 12  # of a traceback


def words(options: OptimizerRun) -> list[object]:
    """Returns what compare.py is told to make a run, but for where."""
    told: list[object] = ["optimizer", options.optimizer, options.data, options.model]
    for field in ("rate", "seed", *(field.name for field in dataclasses.fields(Training))):
        value = getattr(options, field)
        if value is not None:
            told += [f"--{field.replace('_', '-')}", value]
    return told


def about(options: OptimizerRun) -> dict[str, object]:
    """Returns what result.json says before there is a result."""
    return {
        "kind": "optimizer",
        "name": options.optimizer,
        "task": options.task,
        "seed": options.seed,
        "rate": options.rate,
        "command": command("compare.py", *words(options)),
    }


def check(options: Training) -> None:
    """Refuses what cannot work.

    Args:
        options: Of a run, or of a comparison.

    Raises:
        ConfigurationError: If a number cannot be used, or nothing says when a run ends.
    """
    if options.budget_seconds is None and options.epochs is None:
        raise ConfigurationError(
            "nothing says when a run ends: give --budget-seconds, --epochs, or both"
        )
    if options.budget_seconds is not None and not 0 < options.budget_seconds < math.inf:
        raise ConfigurationError(
            f"budget_seconds must be positive and finite, got {options.budget_seconds}"
        )
    settings.at_least(options, 1, "epochs")
    settings.at_least(options, 0, "batch_size")


def for_classify(options: OptimizerRun) -> classification.Options:
    """Returns the options that classify.py makes the same run with."""
    return classification.Options(
        data=options.data,
        data_dir=options.data_dir,
        model=options.model,
        optimizer=options.optimizer,
        lr=options.rate,
        batch_size=options.batch_size,
        epochs=options.epochs,
        budget_seconds=options.budget_seconds,
        schedule=options.schedule,
        seed=options.seed,
        device="cpu",  # seconds and memory are those of one thread
        eval_freq=0,  # the recorder says when
    )


def run(options: OptimizerRun) -> int:
    """Trains and writes result.json, or prints the end without a directory.

    A run that diverged has its curve, too. One whose step lasts longer than the budget of seconds
    ends this process, with a result that says so.

    Args:
        options: Of the run.

    Returns:
        The exit code: 0 finished, 1 failed, 128 + n stopped by signal n, which leaves no result.

    Raises:
        Failure: If the configuration cannot work.
    """
    process.end_with_parent()
    torch.set_num_threads(THREADS)
    interrupts = Interrupts()
    with configuration_errors():
        check(options)
        settings.at_least(options, 0, "seed")
        if options.rate is None:
            options = dataclasses.replace(options, rate=rates.default(options.optimizer))
        recorder = _prepare(options, interrupts)
    if options.budget_seconds is not None:
        recorder.limit = _limit(options, recorder)
    with interrupts:
        failure = _failure(recorder)
    if interrupts.received is not None:
        return 128 + interrupts.received
    _tell(options, recorder, failure)
    return 1 if failure else 0


def _limit(options: OptimizerRun, recorder: Recorder) -> TimeLimit:
    """Returns what ends a run whose step lasts longer than the budget, which no run doubles thus.

    That step is none: it has no loss, and the parameters are in the middle of it.
    """
    budget = options.budget_seconds

    def last_words() -> None:
        step = recorder.run.progress.step + 1
        reason = f"step {step:,} takes longer than the budget of {budget:g} s"
        _tell(options, recorder, f"{rates.TOO_SLOW}: {reason}")
        sys.stdout.flush()

    return TimeLimit(budget, last_words)


def _tell(options: OptimizerRun, recorder: Recorder, failure: str) -> None:
    """Writes result.json, or prints the end without a directory."""
    result = {
        **about(options),
        "status": "failed" if failure else "finished",
        "error": failure,
        "threads": THREADS,
        **recorder.figures(),
    }
    if options.output is None:
        print(_in_words(result))
    else:
        files.write(options.output / files.RESULT, result)
        (options.output / files.PROGRESS).unlink(missing_ok=True)


def _prepare(options: OptimizerRun, interrupts: Interrupts) -> Recorder:
    """Builds all. Memory counts from the model on: libraries and data are the same for everyone."""
    chosen = for_classify(options)
    samples = session.load(chosen)
    _load_libraries()
    memory = PeakMemory()
    progress = None
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        progress = options.output / files.PROGRESS
    return Recorder(session.build(chosen, samples), interrupts, memory, progress)


def _load_libraries() -> None:
    """Takes a step: what the first one loads is no memory of an optimizer's."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 1, 4, 4)).sum().backward()
    optimizer.step()


def _failure(recorder: Recorder) -> str:
    """Trains to the end; returns why that failed, if it did."""
    try:
        recorder.record()
    except NumericalError as error:
        return f"{rates.DIVERGED}: {error}"
    except Exception:
        return "\n".join(traceback.format_exc().splitlines()[-LAST_LINES:])
    return ""


def _in_words(result: dict[str, Any]) -> str:
    done = f"{result['steps']:,} steps in {result['seconds']:.1f} s"
    if result["error"]:
        return f"{done}, then failed: {result['error']}"
    metric = result["metric"].replace("_", " ")
    return (
        f"{done}: loss on the training set {result['final_loss']:.4g}, "
        f"test {metric} {result['final'][0]:.4g}"
    )
