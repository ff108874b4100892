"""What a training run says about itself: its curve, the diagnostics of its updates, its state."""

import math
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from comparison import files

SECONDS_BETWEEN_REPORTS = 1.0
# A diagnostic, and the names in the log that it goes by, the most telling first.
DIAGNOSTICS = {
    "kl": ("train/kl_divergence_loss", "train/kl_divergence", "train/approx_kl"),
    "target_kl": ("train/target_kl",),
    "cg_residual": ("train/cg_residual",),
    # sb3-contrib's TRPO says only whether a step was accepted, ours which fraction.
    "accepted_step": ("train/step_fraction", "train/is_line_search_success"),
    "explained_variance": ("train/explained_variance",),
}


class Recorder(BaseCallback):
    """Records the mean return of the last 100 training episodes, and diagnostics from the logger.

    It looks between an update and the next rollout, where the log holds that update's figures.

    Args:
        every: Environment steps between two points, at least.
        progress: File that says how far the run is; None for none.

    Attributes:
        curve: Points [steps, seconds, mean return].
    """

    POINTS: ClassVar[int] = 200  # of a curve, at most

    def __init__(self, every: int, progress: Path | None = None) -> None:
        super().__init__()
        self.every = every
        self.progress = progress
        self.curve: list[list[float]] = []
        self._values: dict[str, list[list[float]]] = {name: [] for name in DIAGNOSTICS}
        self._next_point = 0
        self._started = self._next_report = time.perf_counter()

    def diagnostics(self) -> dict[str, Any]:
        """Returns [steps, value] lists of the diagnostics that the agent has, and its KL bound.

        The bound is the largest where the agent logs that of each update.
        """
        bound = getattr(self.model, "target_kl", None)
        logged = [value for _, value in self._values["target_kl"]]
        return {
            "kl_bound": max(logged, default=bound if isinstance(bound, int | float) else None),
            **{name: values for name, values in self._values.items() if values},
        }

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Does nothing: the trainer's variables are not read."""

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()

    def _on_step(self) -> bool:
        if self.progress is not None and time.perf_counter() >= self._next_report:
            self._next_report = time.perf_counter() + SECONDS_BETWEEN_REPORTS
            self._report(self.progress)
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._next_point:
            self._record()

    def _on_training_end(self) -> None:
        if not self.curve or self.curve[-1][0] < self.num_timesteps:
            self._record()

    def _record(self) -> None:
        self._next_point = self.num_timesteps + self.every
        mean = self._mean_return()
        if mean is not None:
            elapsed = time.perf_counter() - self._started
            self.curve.append([self.num_timesteps, round(elapsed, 2), round(mean, 2)])
        logged = self.logger.name_to_value
        for name, keys in DIAGNOSTICS.items():
            value = next((logged[key] for key in keys if key in logged), None)
            if value is not None and math.isfinite(value):
                self._values[name].append([self.num_timesteps, float(f"{value:.6g}")])

    def _mean_return(self) -> float | None:
        episodes = self.model.ep_info_buffer
        return float(np.mean([episode["r"] for episode in episodes])) if episodes else None

    def _report(self, progress: Path) -> None:
        seconds = time.perf_counter() - self._started
        state = {
            "steps": self.num_timesteps,
            "seconds": round(seconds, 2),
            "score": self._mean_return(),
        }
        files.write(progress, state)
