"""A progress bar that shows what a person waits for: the return, and the time left."""

import time

import numpy as np
from common.progress import SECONDS_BETWEEN_UPDATES, progress_bar
from stable_baselines3.common.callbacks import BaseCallback

from training.callbacks import Evaluations


class ProgressBar(BaseCallback):
    """Shows the share of the steps, steps per second, returns, and the time left.

    Args:
        title: What is trained.
        evaluations: Where the last evaluation is found.
    """

    def __init__(self, title: str, evaluations: Evaluations) -> None:
        super().__init__()
        self.evaluations = evaluations
        self._bar = progress_bar(
            title,
            "{task.fields[speed]}/s",
            "return {task.fields[training]}",
            "[bold cyan]eval {task.fields[evaluation]}",
        )
        self._next_update = 0.0

    def stop(self) -> None:
        """Shows the last state and gives the terminal back."""
        if self._bar.tasks:
            self._show()
        self._bar.stop()

    def _on_training_start(self) -> None:
        self._started, self._first = time.monotonic(), self.model.num_timesteps
        self._task = self._bar.add_task(
            "", total=self.model._total_timesteps, completed=self._first, **self._fields()
        )
        self._bar.start()

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now >= self._next_update:
            self._next_update = now + SECONDS_BETWEEN_UPDATES
            self._show()
        return True

    def _show(self) -> None:
        self._bar.update(self._task, completed=self.model.num_timesteps, **self._fields())

    def _fields(self) -> dict[str, str]:
        seconds = max(time.monotonic() - self._started, 1e-9)
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        last = self.evaluations.last
        return {
            "speed": f"{(self.model.num_timesteps - self._first) / seconds:,.0f}",
            "training": f"{np.mean(returns):,.1f}" if returns else "–",
            "evaluation": "–" if last is None else f"{last[0]:,.1f}",
        }
