"""A classification data set as a contextual bandit: agents train a classifier on its metric."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from envs.array import ArrayVecEnv

Reward = Literal["accuracy", "balanced"] | Callable[[int, int], float]
Observation = NDArray[np.float32]


class _Classification:
    """The data, what each guess at each label is worth, and the order of the data."""

    def __init__(
        self, inputs: ArrayLike, labels: ArrayLike, reward: Reward, replacement: bool
    ) -> None:
        self.inputs: Observation = np.asarray(inputs, dtype=np.float32)
        given = np.asarray(labels)
        self.labels: NDArray[np.int64] = given.astype(np.int64)
        if self.inputs.ndim < 2 or given.ndim != 1 or len(given) != len(self.inputs):
            raise ValueError(
                "inputs must have shape (samples, ...) and labels (samples,), got "
                f"{self.inputs.shape} and {given.shape}"
            )
        if not np.isfinite(self.inputs).all():
            raise ValueError("inputs must be finite: an agent cannot act on NaN or infinity")
        classes = int(self.labels.max(initial=0)) + 1
        if not np.array_equal(self.labels, given) or self.labels.min(initial=0) < 0 or classes < 2:
            raise ValueError(
                "labels must be classes 0, 1, … of which there are two or more; "
                "np.unique(labels, return_inverse=True)[1] numbers others so"
            )
        self.rewards = _table(reward, self.labels, classes)
        self.replacement = replacement
        self._left = np.zeros(0, dtype=np.int64)
        self.observation_space = spaces.Box(-np.inf, np.inf, self.inputs.shape[1:], np.float32)
        self.action_space = spaces.Discrete(classes)

    def restart(self) -> None:
        """Forget what is left of the epoch."""
        self._left = self._left[:0]

    def draw(self, number: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return the indices of the next samples."""
        if self.replacement:
            return generator.integers(len(self.labels), size=number)
        while len(self._left) < number:
            self._left = np.concatenate([self._left, generator.permutation(len(self.labels))])
        drawn, self._left = np.split(self._left, [number])
        return drawn


def _table(reward: Reward, labels: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Return rewards [action, label]."""
    if callable(reward):
        every = range(classes)
        table = np.array([[float(reward(a, label)) for label in every] for a in every], np.float32)
        if not np.isfinite(table).all():
            action, label = np.argwhere(~np.isfinite(table))[0]
            raise ValueError(
                f"reward({action}, {label}) is {table[action, label]}: rewards must be finite"
            )
        return table
    if reward == "accuracy":
        return np.eye(classes, dtype=np.float32)
    if reward == "balanced":
        counts = np.bincount(labels, minlength=classes)
        weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return np.diag(weights).astype(np.float32)
    raise ValueError(f"reward must be 'accuracy', 'balanced' or a callable, got {reward!r}")


class MetricBandit(gym.Env[Observation, np.int64]):
    """Guess the label of an input: one step an episode, whose reward is the metric.

    A policy's expected return is the expected metric, so that an agent that maximises it trains a
    classifier on the metric itself. `MetricBanditVecEnv` steps many at the price of one.

    Args:
        inputs: (samples, ...), what is observed, as float32.
        labels: (samples,), the right actions: classes 0, 1, …
        reward: "accuracy" is 1 for a hit; "balanced" is samples / (classes × samples of the class)
            for a hit, so that the mean reward over the data is the mean recall of the classes; or a
            callable (action, label) → reward, which is asked once for each pair: costs, say. A
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
        self._data = _Classification(inputs, labels, reward, replacement)
        self.observation_space = self._data.observation_space
        self.action_space = self._data.action_space
        self._shown = 0

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
        """
        label = int(self._data.labels[self._shown])
        reward = float(self._data.rewards[int(action), label])
        return self._data.inputs[self._shown].copy(), reward, True, False, {"label": label}


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
        self._data = data = _Classification(inputs, labels, reward, replacement)
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
            ValueError: the shape of `actions` is wrong.
        """
        if not len(self._shown):
            raise RuntimeError("call reset() before the first step")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"expected actions of shape {(self.num_envs,)}, got {actions.shape}")
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Reward them, and show the next inputs.

        Returns:
            Inputs (num_envs, ...); rewards float32 (num_envs,); dones, all True; one info per
            environment with `"terminal_observation"`, `"TimeLimit.truncated"` (False) and
            `"episode"`.
        """
        rewards = self._data.rewards[self._actions, self._data.labels[self._shown]]
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

    def _show(self) -> Observation:
        """Draw the next inputs."""
        self._shown = self._data.draw(self.num_envs, self._generator)
        self._observed = self._data.inputs[self._shown]
        return self._observed.copy()
