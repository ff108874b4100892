"""What happens during training beside it: evaluations, and what they lead to."""

import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import seeds
from common.files import replacing, tolerated
from stable_baselines3.common.callbacks import CallbackList, EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from npg.ranks import count as number_of_ranks
from training.home import Home
from training.run_directory import BEST, EVALUATIONS, read_evaluations

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
        home: The run's directory.
        every: Environment steps between evaluations; 0 for none.
        episodes: Of an evaluation.
        seed: Of the run.
        stop_at: Mean return that ends the training.
        draw: Draws the learning curve.
    """

    def __init__(
        self,
        eval_env: VecEnv,
        home: Home,
        every: int,
        episodes: int,
        seed: int,
        stop_at: float | None,
        draw: Callable[[], None],
    ) -> None:
        super().__init__(
            eval_env,
            n_eval_episodes=episodes,
            verbose=0,
        )
        self.home = home
        home.contents.append(self.write)
        self._written = io.BytesIO()  # evaluations.npz
        self.every = every
        self.seed = seed
        self.stop_at = np.inf if stop_at is None else stop_at
        self.draw = draw
        self._drawn = time.monotonic()

    def go_on(self, steps: int) -> None:
        """Takes over the evaluations of the run until the checkpoint that it goes on from."""
        earlier = read_evaluations(self.home.directory, until=steps)
        if not earlier or not len(earlier["timesteps"]):
            return
        self.evaluations_timesteps = earlier["timesteps"].tolist()
        self.evaluations_results = earlier["results"].tolist()
        self.evaluations_length = earlier["ep_lengths"].tolist()
        self.evaluations_successes = earlier["successes"].tolist() if "successes" in earlier else []
        self.best_mean_reward = float(earlier["results"].mean(axis=1).max())
        np.savez(self._written, **earlier)

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
        steps = self.training_env.num_envs * number_of_ranks()  # per call
        self.eval_freq = max(self.every // steps, 1) if self.every else 0
        self.n_calls = self.model.num_timesteps // steps

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
        file = self.home.directory / BEST
        if not file.exists():  # it was removed: the best of those to come
            self.best_mean_reward = -np.inf
        best = self.best_mean_reward
        # The base class evaluates on calls that its frequency divides, and writes to a path, which
        # would be half a file if the disk is full.
        self.eval_freq, frequency = 1, self.eval_freq
        self.log_path = self._written = io.BytesIO()
        super()._on_step()
        self.eval_freq = frequency
        self.home.ensure()
        self.write()
        if self.best_mean_reward > best:
            # So that the next one is saved, if this one is not.
            reached, self.best_mean_reward = self.best_mean_reward, best
            with tolerated(file):
                self.model.save(file)
                self.best_mean_reward = reached

    def write(self) -> None:
        """Writes evaluations.npz, if there has been an evaluation."""
        file = self.home.directory / EVALUATIONS
        if content := self._written.getvalue():
            with tolerated(file), replacing(file) as temporary:
                temporary.write_bytes(content)
