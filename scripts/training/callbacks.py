"""What happens during training beside it: evaluations, checkpoints, a graceful end."""

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from common import seeds
from common.interrupts import Interrupts
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from envs import load_normalization_state, normalization_state
from envs.normalization_state import NormalizationState
from training.run_directory import LAST, read_evaluations

# Drawing takes some tenths of a second: a short run should not spend its time on it.
SECONDS_BETWEEN_PLOTS = 10.0


class Callbacks(CallbackList):
    """Callbacks none of which reads the trainer's variables, which are then not copied to each."""

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Does nothing: this would cost as much as all else that happens in a step beside it."""


class Evaluations(EvalCallback):
    """Stable-Baselines3's evaluations, which also go on, stop the training, and are drawn.

    Every evaluation plays episodes of its own, which follow from the run's seed and the steps.

    Args:
        eval_env: Environments, wrapped as those of the training.
        directory: Of the run.
        every: Environment steps between evaluations; 0 for none.
        episodes: Of an evaluation.
        seed: Of the run.
        stop_at: Mean return that ends the training.
        draw: Draws the learning curve.
    """

    def __init__(
        self,
        eval_env: VecEnv,
        directory: Path,
        every: int,
        episodes: int,
        seed: int,
        stop_at: float | None,
        draw: Callable[[], None],
    ) -> None:
        super().__init__(
            eval_env,
            n_eval_episodes=episodes,
            log_path=str(directory),
            best_model_save_path=str(directory),
            verbose=0,
        )
        self.directory = directory
        self.every = every
        self.seed = seed
        self.stop_at = np.inf if stop_at is None else stop_at
        self.draw = draw
        self._drawn = time.monotonic()

    def go_on(self, steps: int) -> None:
        """Takes over the evaluations of the run until the checkpoint that it goes on from."""
        earlier = read_evaluations(self.directory, until=steps)
        if not earlier or not len(earlier["timesteps"]):
            return
        self.evaluations_timesteps = earlier["timesteps"].tolist()
        self.evaluations_results = earlier["results"].tolist()
        self.evaluations_length = earlier["ep_lengths"].tolist()
        self.evaluations_successes = earlier["successes"].tolist() if "successes" in earlier else []
        self.best_mean_reward = float(earlier["results"].mean(axis=1).max())

    def final(self) -> None:
        """Evaluates the policy as it is now."""
        self.num_timesteps = self.model.num_timesteps
        self._evaluate()

    @property
    def last(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the last evaluation."""
        if not self.evaluations_results:
            return None
        return float(np.mean(self.evaluations_results[-1])), float(
            np.std(self.evaluations_results[-1])
        )

    @property
    def reached(self) -> bool:
        """Whether the last evaluation met the goal that ends the training."""
        return self.last_mean_reward >= self.stop_at

    def _init_callback(self) -> None:
        # Not the base class's part, which warns where training runs on EnvPool.
        self.eval_freq = max(self.every // self.training_env.num_envs, 1) if self.every else 0
        self.n_calls = self.model.num_timesteps // self.training_env.num_envs

    def _on_step(self) -> bool:
        if not self.eval_freq or self.n_calls % self.eval_freq:
            return True
        self._evaluate()
        if time.monotonic() - self._drawn > SECONDS_BETWEEN_PLOTS:
            self.draw()
            self._drawn = time.monotonic()
        return not self.reached

    def _evaluate(self) -> None:
        self.eval_env.seed(seeds.derived(self.seed, seeds.EVALUATION, self.num_timesteps))
        # The base class evaluates on calls that its frequency divides.
        self.eval_freq, frequency = 1, self.eval_freq
        self.log_path = str(self.directory / ".evaluations")
        super()._on_step()
        os.replace(self.directory / ".evaluations.npz", self.directory / "evaluations.npz")
        self.eval_freq = frequency


class Checkpoints(BaseCallback):
    """Keeps last_model.zip up to date, and ends the training on a signal.

    It saves between an update and the next rollout, where nothing is half done and from where a
    continued run is the uninterrupted one; the first time before the first rollout. On a signal,
    too, the training ends there. Where a rollout is given up (an error, or one that a signal did
    not see the end of within PATIENCE) what is saved is the agent as it was before it, without the
    environments: training goes on from there in new episodes.

    Args:
        directory: Of the run.
        every: Environment steps between checkpoints; 0 for none during the training.
        interrupts: Where signals arrive.

    Attributes:
        path: Of the checkpoint.
    """

    # Seconds that a signal leaves to a rollout under way, counted from its next step. An update is
    # waited for, and so is a step: nothing else can be done with an environment that hangs.
    PATIENCE: ClassVar[float] = 20.0

    def __init__(self, directory: Path, every: int, interrupts: Interrupts) -> None:
        super().__init__()
        self.path = directory / LAST
        self.every = every
        self.interrupts = interrupts
        self._saved_at: int | None = None
        self._ended = False
        self._deadline = math.inf
        self._collecting = False
        self._began_at: int | None = None
        self._normaliser: NormalizationState | None = None

    def save(self) -> None:
        """Saves now, which has to be between an update and the next rollout."""
        self.model.save(self.path, include=["environments"])

    def give_up(self) -> None:
        """Saves the agent as it was before the rollout under way, or the update after it."""
        if self._began_at is None:  # no rollout has begun
            return
        self.model.num_timesteps = self._began_at
        normaliser = self.model.get_vec_normalize_env()
        if normaliser is not None and self._normaliser is not None:
            load_normalization_state(normaliser, self._normaliser)
        self.model.save(self.path)

    def finish(self) -> None:
        """Saves what the training ended with, unless that was done before its last step."""
        if self._ended:
            self.model.num_timesteps = self._began_at  # the step that ended it is lost
        elif not self._collecting:
            self.save()
        elif time.monotonic() >= self._deadline:
            print("the rollout is given up: its samples are lost", file=sys.stderr)
            self.give_up()
        else:  # the goal was reached in the middle of a rollout
            self.model.save(self.path)

    def _on_step(self) -> bool:
        if self.interrupts.received is None:
            return True
        if self._deadline == math.inf:
            self._deadline = time.monotonic() + self.PATIENCE
            print("ending after this update; again to end at once", file=sys.stderr)
        return not self._ended and time.monotonic() < self._deadline

    def _on_rollout_start(self) -> None:
        self._ended = self.interrupts.received is not None
        self._collecting, self._began_at = True, self.model.num_timesteps
        normaliser = self.model.get_vec_normalize_env()
        self._normaliser = None if normaliser is None else normalization_state(normaliser)
        due = self._saved_at is None or self._began_at - self._saved_at >= self.every
        if (self.every and due) or self._ended:
            self._saved_at = self._began_at
            self.save()

    def _on_rollout_end(self) -> None:
        self._collecting = False
