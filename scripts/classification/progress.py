"""A progress bar that shows loss, figure of merit and time left."""

import time

from common.progress import SECONDS_BETWEEN_UPDATES, progress_bar

from classification.loop import Loop


class ProgressBar:
    """Shows how far a run is.

    Args:
        loop: Whose run.
    """

    def __init__(self, loop: Loop) -> None:
        options = loop.run.options
        self._loop = loop
        self._started, self._first = time.monotonic(), loop.run.progress.step
        self._next_update = 0.0
        self._bar = progress_bar(
            f"{options.optimizer} {options.data}",
            "{task.fields[speed]}/s",
            "loss {task.fields[loss]}",
            "[bold cyan]{task.fields[evaluation]}",
        )
        self._task = self._bar.add_task("", total=1.0, **self._state())
        self._bar.start()

    def update(self) -> None:
        """Shows the state, not oftener than an eye can follow."""
        now = time.monotonic()
        if now >= self._next_update:
            self._next_update = now + SECONDS_BETWEEN_UPDATES
            self._bar.update(self._task, **self._state())

    def stop(self) -> None:
        """Shows the last state and gives the terminal back."""
        self._bar.update(self._task, **self._state())
        self._bar.stop()

    def _state(self) -> dict:
        run = self._loop.run
        seconds = max(time.monotonic() - self._started, 1e-9)
        merit = self._loop.evaluation.get(run.task.metric)
        name = run.task.metric.rpartition("_")[2]  # the line is short
        return {
            "completed": min(run.share, 1.0),
            "speed": f"{(run.progress.step - self._first) / seconds:,.0f}",
            "loss": f"{self._loop.loss:.4g}",
            "evaluation": f"{name} {'–' if merit is None else f'{merit:.4g}'}",
        }
