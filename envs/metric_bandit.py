"""A classification data set as a contextual bandit: agents train a classifier on its metric."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from envs import states
from envs.array import ArrayVecEnv
from envs.classification import Classification, Observation, Reward
from envs.described import described, generator


class MetricBandit(gym.Env[Observation, np.int64]):
    """Guess the label of an input: one step an episode, whose reward is the metric.

    A policy's expected return is the expected metric, so that an agent that maximises it trains a
    classifier on the metric itself. `MetricBanditVecEnv` steps many at the price of one.

    Args:
        inputs: (samples, ...), what is observed, copied as float32. The space of observations has
            no bounds, so that a "CnnPolicy" takes images only with
            ``policy_kwargs={"normalize_images": False}``, and their channels first.
        labels: (samples,), the right actions: classes 0, 1, …
        reward: "accuracy" is 1 for a hit; "balanced" is samples / (classes × samples of the class)
            for a hit, so that the mean reward over the data is the mean recall of the classes; or a
            callable (action, label) → reward, which is asked once for each pair: costs, say, of
            at most 5,000 classes. A
            metric that does not split into samples, such as F1, is for
            `npg.objectives.score_function`.
        replacement: whether each input is drawn from all; otherwise an epoch shows each once.
        render_mode: must be None.

    Raises:
        ValueError: data that is no classification, or an unknown reward.
    """

    def __init__(
        self,
        inputs: ArrayLike,
        labels: ArrayLike,
        reward: Reward = "accuracy",
        *,
        replacement: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """Check the data; see the class."""
        if render_mode is not None:
            raise ValueError("render_mode must be None: there is nothing to see")
        self.render_mode = None
        self._data = Classification(inputs, labels, reward, replacement)
        self.observation_space = self._data.observation_space
        self.action_space = self._data.action_space
        self._shown: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[Observation, dict[str, object]]:
        """Show the next input.

        Args:
            seed: of the order, which then starts anew; None goes on.
            options: unused.

        Returns:
            The input, and its index as info.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._data.restart()
        self._shown = int(self._data.draw(1, self.np_random)[0])
        return self._data.inputs[self._shown].copy(), {"index": self._shown}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, object]]:
        """Reward a guess.

        Args:
            action: the class.

        Returns:
            The same input; the reward; terminated, always True; truncated, False; the right class
            as info.

        Raises:
            RuntimeError: `reset` was never called.
            ValueError: `action` is no class.
        """
        if self._shown is None:
            raise RuntimeError("call reset() before the first step")
        data, shown = self._data, np.array([self._shown])
        reward = float(data.rewards(data.actions(np.ravel(action), 1), shown)[0])
        label = int(data.labels[self._shown])
        return data.inputs[self._shown].copy(), reward, True, False, {"label": label}

    def order_state(self) -> dict[str, object]:
        """Say where in the order of the data the environment is.

        Returns:
            What is left of the epoch, the input that is shown, and the generator.
        """
        drawn = described(self.np_random, "the generator")
        return {**self._data.order(), "shown": self._shown, "generator": drawn}

    def restore_order_state(self, state: dict[str, Any]) -> None:
        """Go on from what `order_state` said.

        Args:
            state: what it returned.

        Raises:
            ValueError: it did not, or of other data; nothing has changed.
        """
        drawn, shown = generator(state["generator"], "the generator"), state["shown"]
        self._data.check(state, np.array([] if shown is None else [shown], dtype=np.int64))
        self._data.go_on(state)
        self.np_random, self._shown = drawn, shown


class MetricBanditVecEnv(ArrayVecEnv):
    """`num_envs` of `MetricBandit`, stepped as one array, for Stable-Baselines3's algorithms.

    They share the order of the data: an epoch shows each input once in one of them.

    Args:
        inputs: as for `MetricBandit`, as are the others that are not named here.
        labels: the same.
        num_envs: inputs per step.
        reward: the same.
        replacement: the same.
        seed: of the order; None draws one from NumPy's global state.

    Raises:
        ValueError: as `MetricBandit`, or a bad `num_envs`.
    """

    def __init__(
        self,
        inputs: ArrayLike,
        labels: ArrayLike,
        num_envs: int = 64,
        reward: Reward = "accuracy",
        *,
        replacement: bool = False,
        seed: int | None = None,
    ) -> None:
        """Check the data; see the class."""
        if not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ValueError(f"num_envs must be a positive integer, got {num_envs!r}")
        self._data = data = Classification(inputs, labels, reward, replacement)
        super().__init__(
            int(num_envs),
            data.observation_space,
            data.action_space,
            {"render_mode": None, "spec": None},
            "MetricBanditVecEnv has no {}: use envs.make(lambda: MetricBandit(…), num_envs)",
        )
        self._generator = np.random.default_rng()
        self._shown = np.zeros(0, dtype=np.int64)
        self._observed = data.inputs[:0]
        self._actions = self._shown
        self._start = time.time()
        self.seed(seed)
        data.action_space.seed(seed)

    def reset(self) -> Observation:
        """Show the next inputs, with the seed set before, if any.

        Returns:
            Inputs (num_envs, ...).
        """
        if self._seeds[0] is not None:
            self._generator = np.random.default_rng(self._seeds[0])
            self._data.restart()
            self._reset_seeds()
        return self._show()

    def step_async(self, actions: np.ndarray) -> None:
        """Take the guesses.

        Args:
            actions: classes (num_envs,).

        Raises:
            RuntimeError: `reset` was never called.
            ValueError: the shape of `actions` is wrong, or one is no class.
        """
        if not len(self._shown):
            raise RuntimeError("call reset() before the first step")
        self._actions = self._data.actions(actions, self.num_envs)

    def step_wait(self) -> VecEnvStepReturn:
        """Reward them, and show the next inputs.

        Returns:
            Inputs (num_envs, ...); rewards float32 (num_envs,); dones, all True; one info per
            environment with `"terminal_observation"`, `"TimeLimit.truncated"` (False) and
            `"episode"`.
        """
        rewards = self._data.rewards(self._actions, self._shown)
        seconds = round(time.time() - self._start, 6)
        infos: list[dict[str, object]] = [
            {
                "terminal_observation": observed,
                "TimeLimit.truncated": False,
                "episode": {"r": round(reward, 6), "l": 1, "t": seconds},
            }
            for observed, reward in zip(self._observed, rewards.tolist(), strict=True)
        ]
        return self._show(), rewards, np.ones(self.num_envs, dtype=bool), infos

    def close(self) -> None:
        """Nothing is open."""

    def order_state(self) -> dict[str, object]:
        """Say where in the order of the data the environments are.

        Returns:
            What is left of the epoch, the inputs that are shown, and the generator.
        """
        drawn = described(self._generator, "the generator")
        return {**self._data.order(), "shown": self._shown.copy(), "generator": drawn}

    def restore_order_state(self, state: dict[str, Any]) -> None:
        """Go on from what `order_state` said; a seed that waits for a reset is dropped.

        Args:
            state: what it returned.

        Raises:
            ValueError: it did not, or of other data; nothing has changed.
        """
        drawn = generator(state["generator"], "the generator")
        self._data.check(state, state["shown"])
        if len(state["shown"]) not in (0, self.num_envs):
            raise ValueError(f"the state is of {len(state['shown'])} environments")
        self._data.go_on(state)
        self._generator, self._shown = drawn, state["shown"].copy()
        self._observed = self._data.inputs[self._shown]
        self._reset_seeds()

    def _show(self) -> Observation:
        """Draw the next inputs."""
        self._shown = self._data.draw(self.num_envs, self._generator)
        self._observed = self._data.inputs[self._shown]
        return self._observed.copy()


states.register(MetricBandit, MetricBandit.order_state, MetricBandit.restore_order_state)
states.register(
    MetricBanditVecEnv, MetricBanditVecEnv.order_state, MetricBanditVecEnv.restore_order_state
)
