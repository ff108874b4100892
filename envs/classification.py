"""Labelled data: what each guess at each label is worth, and the order of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

Reward = Literal["accuracy", "balanced"] | Callable[[int, int], float]
Observation = NDArray[np.float32]


class Classification:
    """Labelled data as `envs.MetricBandit` takes them, checked.

    Args:
        inputs: as there.
        labels: as there.
        reward: as there.
        replacement: as there.

    Attributes:
        inputs: float32.
        labels: classes, int64.
        rewards: [action, label].
        observation_space: of an input.
        action_space: of a label.

    Raises:
        ValueError: data that is no classification, or an unknown reward.
    """

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
