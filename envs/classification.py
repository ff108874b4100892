"""Labelled data: what each guess at each label is worth, and the order of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from envs.described import digest

Reward = Literal["accuracy", "balanced"] | Callable[[int, int], float]
Observation = NDArray[np.float32]

# A reward of one's own is tabled for each pair of so many classes: 100 MB.
MOST_CLASSES = 5_000


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
        observation_space: of an input.
        action_space: of a label.

    Raises:
        ValueError: data that is no classification, or an unknown reward.
    """

    def __init__(
        self, inputs: ArrayLike, labels: ArrayLike, reward: Reward, replacement: bool
    ) -> None:
        try:
            self.inputs: Observation = np.asarray(inputs).astype(np.float32)
        except (TypeError, ValueError, RuntimeError) as error:  # those of torch's tensors, too
            raise ValueError(
                "inputs must be numbers, (samples, ...), and tensors on the CPU without a graph "
                f"(tensor.detach().cpu()): {error}"
            ) from error
        given = np.asarray(labels)
        if self.inputs.ndim < 2 or given.ndim != 1 or len(given) != len(self.inputs):
            raise ValueError(
                "inputs must have shape (samples, ...) and labels (samples,), got "
                f"{self.inputs.shape} and {given.shape}"
            )
        if not np.isfinite(self.inputs).all():
            raise ValueError("inputs must be finite: an agent cannot act on NaN or infinity")
        self.labels = _classes(given)
        classes = int(self.labels.max()) + 1
        self._hits, self._table = _rewards(reward, self.labels, classes)
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

    def order(self) -> dict[str, object]:
        """Return what is left of the epoch, and which data that is of."""
        return {"left": self._left.copy(), "data": self._digest()}

    def check(self, order: Mapping[str, Any], *shown: NDArray[np.int64]) -> None:
        """Raise a ValueError unless `order` returned this, and all indices are those of samples."""
        if order["data"] != self._digest():
            raise ValueError("the state is one of other data")
        for indices in (order["left"], *shown):
            if (
                not isinstance(indices, np.ndarray)
                or indices.dtype != np.int64
                or indices.ndim != 1
            ):
                raise ValueError("the state has no indices of samples where they should be")
            if len(indices) and not 0 <= indices.min() <= indices.max() < len(self.labels):
                raise ValueError(f"the state shows samples that are none of {len(self.labels):,}")

    def go_on(self, order: Mapping[str, Any]) -> None:
        """Take what `check` accepted."""
        self._left = order["left"].copy()

    def actions(self, given: ArrayLike, number: int) -> NDArray[np.int64]:
        """Return guesses as classes (number,); raise a ValueError where they are none."""
        actions, classes = np.asarray(given), int(self.action_space.n)
        if actions.shape != (number,):
            raise ValueError(f"expected actions of shape {(number,)}, got {actions.shape}")
        if actions.dtype.kind not in "biu" or actions.min() < 0 or actions.max() >= classes:
            raise ValueError(f"actions must be classes from 0 to {classes - 1}, got {actions}")
        return actions.astype(np.int64)

    def rewards(self, actions: NDArray[np.int64], shown: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return what guesses at the samples shown are worth."""
        labels = self.labels[shown]
        if self._table is not None:
            return self._table[actions, labels]
        return np.where(actions == labels, self._hits[shown], np.float32(0))

    def _digest(self) -> str:
        """Tell these data and rewards from others; inputs, which may be large, by their sizes."""
        return digest([self.inputs.shape, self.labels, self._hits, self._table, self.replacement])


def _classes(given: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return labels as integers; raise a ValueError where they are no classes."""
    try:
        with np.errstate(invalid="ignore"):
            labels = given.astype(np.int64)
        wrong = not np.array_equal(labels, given) or labels.min(initial=0) < 0
    except (TypeError, ValueError, OverflowError):
        wrong = True
    if wrong or len(np.unique(labels)) < 2:
        raise ValueError(
            "labels must be classes 0, 1, … of which there are two or more; "
            "np.unique(labels, return_inverse=True)[1] numbers others so"
        )
    return labels


def _rewards(
    reward: Reward, labels: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return what a hit is worth, of each sample, and rewards [action, label] of one's own."""
    hits = np.ones(len(labels), np.float32)
    if callable(reward):
        return hits, _table(reward, classes)
    if reward == "balanced":
        _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
        hits = (len(labels) / (len(counts) * counts[inverse])).astype(np.float32)
    elif reward != "accuracy":
        raise ValueError(f"reward must be 'accuracy', 'balanced' or a callable, got {reward!r}")
    return hits, None


def _table(reward: Callable[[int, int], float], classes: int) -> NDArray[np.float32]:
    """Return rewards [action, label]."""
    if classes > MOST_CLASSES:
        raise ValueError(
            f"a reward of one's own is asked for each pair of {classes:,} classes, and at most "
            f"{MOST_CLASSES:,} are allowed; np.unique(labels, return_inverse=True)[1] leaves out "
            "classes that do not occur"
        )
    table = np.empty((classes, classes), np.float32)
    for action, label in np.ndindex(table.shape):
        worth = reward(action, label)
        try:
            table[action, label] = math.nan if np.ndim(worth) else float(worth)
        except (TypeError, ValueError):
            table[action, label] = math.nan
        if not np.isfinite(table[action, label]):
            raise ValueError(
                f"reward({action}, {label}) is {worth!r}: rewards must be finite numbers"
            )
    return table
