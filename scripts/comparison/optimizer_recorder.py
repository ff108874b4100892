"""The training loop of classify.py, keeping figures instead of checkpoints."""

import math
import time
from array import array
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import fmean, median
from typing import Any

from classification.checkpoints import LAST
from classification.loop import Loop, measured
from classification.session import Run
from common.interrupts import Interrupts
from common.memory import PeakMemory

from comparison import files
from npg.errors import NumericalError

POINTS = 200  # of the curve
EVALUATIONS = 20  # after the one before the first step
SECONDS_BETWEEN_REPORTS = 1.0


class Recorder(Loop):
    """Trains a run to its end, and records it.

    Args:
        run: What to train.
        interrupts: Where signals arrive.
        memory: Of the run, without evaluations.
        file: progress.json, written about once a second; None writes none.

    Attributes:
        limit: Inside which every step is taken.
    """

    def __init__(
        self, run: Run, interrupts: Interrupts, memory: PeakMemory, file: Path | None
    ) -> None:
        super().__init__(run, interrupts)
        self.memory = memory
        self.file = file
        self.limit: AbstractContextManager[object] = nullcontext()
        self.curve: list[tuple[int, float, float]] = []
        self.evaluations: list[tuple[int, float, float, float]] = []
        self.final_loss: float | None = None
        self._step_seconds = array("d")  # a list would take memory of its own
        self._losses: list[float] = []  # since the curve's last point
        self._clock = self._share = 0.0  # at the last step
        self._next_report = 0.0

    def record(self) -> None:
        """Trains, with an evaluation before the first step and one after the last.

        Raises:
            NumericalError: If a loss is not finite.
        """
        self.evaluate()
        self.train(self._after_step)
        with self.memory.paused():
            loss = measured(self.run, self.run.data.train)["loss"]
        if not math.isfinite(loss):
            raise NumericalError(f"the loss on the training set is {loss} at the end")
        self.final_loss = loss

    def save(self, name: str = LAST) -> None:
        """Saves nothing: a run that was killed is made again."""

    def evaluate(self) -> None:
        """Measures the model on the test data."""
        with self.memory.paused():
            super().evaluate()
        progress = self.run.progress
        loss, merit = self.evaluation["loss"], self.evaluation[self.run.task.metric]
        self.evaluations.append((progress.step, progress.seconds, loss, merit))

    def figures(self) -> dict[str, Any]:
        """What result.json says of the run, whether it finished or not."""
        self._add_point()
        run, progress = self.run, self.run.progress
        finished = self.final_loss is not None
        return {
            "arguments": self._arguments(),
            "steps": progress.step,
            "seconds": progress.seconds,
            "step_seconds": median(self._step_seconds) if self._step_seconds else None,
            "peak_memory_mb": self.memory.megabytes,
            "curve": self.curve,
            "evaluations": self.evaluations,
            "metric": run.task.metric,
            "larger_is_better": run.task.larger_is_better,
            "final": [self.evaluations[-1][-1]] if finished else [],
            "final_loss": self.final_loss,
        }

    def _step(self, share: float) -> None:
        with self.limit:
            super()._step(share)

    def _after_step(self) -> None:
        progress, share = self.run.progress, min(self.run.share, 1.0)
        self._step_seconds.append(progress.seconds - self._clock)
        self._clock = progress.seconds
        self._losses.append(self.loss)
        if int(share * POINTS) > int(self._share * POINTS):
            self._add_point()
        if int(share * EVALUATIONS) > int(self._share * EVALUATIONS) and share < 1:
            self.evaluate()  # the one at the end is the loop's
        self._share = share
        self._report()

    def _add_point(self) -> None:
        if self._losses:
            progress = self.run.progress
            self.curve.append((progress.step, progress.seconds, fmean(self._losses)))
            self._losses = []

    def _report(self) -> None:
        if self.file is not None and time.monotonic() >= self._next_report:
            self._next_report = time.monotonic() + SECONDS_BETWEEN_REPORTS
            progress, score = self.run.progress, self.evaluation[self.run.task.metric]
            state = {"steps": progress.step, "seconds": progress.seconds, "score": score}
            files.write(self.file, state)

    def _arguments(self) -> dict[str, Any]:
        """Settings of the run, and of the optimizer's first group."""
        options, group = self.run.options, self.run.optimizer.param_groups[0]
        settings = {name: value for name, value in group.items() if name != "params"}
        settings["lr"] = settings.pop("initial_lr")  # before the schedule
        plain = {name: _plain(value) for name, value in settings.items()}
        return plain | {
            "batch_size": self.run.batch_size,
            "schedule": options.schedule,
            "epochs": options.epochs,
            "budget_seconds": options.budget_seconds,
            "parameters": sum(p.numel() for p in self.run.model.parameters()),
        }


def _plain(value: object) -> object:
    """What JSON can say, infinity as a word."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return str(value)
