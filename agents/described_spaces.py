"""Spaces and schedules in checkpoints: what each consists of, and how it is made of that again."""

import collections
from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common import utils

from npg import checkpoints
from npg.errors import CheckpointError


def box(
    low: np.ndarray,
    high: np.ndarray,
    dtype: np.dtype,
    bounded_below: np.ndarray | None = None,
    bounded_above: np.ndarray | None = None,
) -> spaces.Box:
    """Makes a box.

    Args:
        low: Bounds.
        high: Others, of the same shape.
        dtype: Of its elements.
        bounded_below: Which of the bounds are meant; None where that follows from them. For
            integers it does not: "-infinity" is the least of them.
        bounded_above: Likewise.

    Returns:
        The space.

    Raises:
        CheckpointError: If they are none of a box.
    """
    arrays = [np.asarray(low), np.asarray(high)]
    if any(a.dtype.kind not in "biuf" for a in arrays) or arrays[0].shape != arrays[1].shape:
        raise CheckpointError("a box has two arrays of numbers of one shape")
    if np.any(arrays[0] > arrays[1]):
        raise CheckpointError("a box has low <= high")
    made = spaces.Box(0, 1, arrays[0].shape, dtype)  # type: ignore[arg-type]
    made.low, made.high = (array.astype(made.dtype) for array in arrays)
    for name, given in (("bounded_below", bounded_below), ("bounded_above", bounded_above)):
        found = -np.inf < made.low if name == "bounded_below" else made.high < np.inf
        if given is not None:
            found = np.asarray(given)
        if found.dtype != bool or found.shape != made.shape:
            raise CheckpointError(f"a box's {name} is an array of its shape")
        setattr(made, name, found)
    return made


def discrete(n: int, start: int = 0, dtype: np.dtype | None = None) -> spaces.Discrete:
    """Makes ``n`` numbers from ``start`` on; older spaces had neither start nor type."""
    return spaces.Discrete(int(n), start=int(start), dtype=dtype or np.int64)  # type: ignore[arg-type]


def multi_discrete(
    nvec: np.ndarray, start: np.ndarray | None = None, dtype: np.dtype | None = None
) -> spaces.MultiDiscrete:
    """Makes a vector of such numbers."""
    return spaces.MultiDiscrete(nvec, dtype or np.int64, start=start)  # type: ignore[arg-type]


def multi_binary(n: Any) -> spaces.MultiBinary:
    """Makes a vector of bits, or an array of them, given its shape."""
    return spaces.MultiBinary(int(n) if np.ndim(n) == 0 else [int(size) for size in n])


def dictionary(pairs: Iterable[tuple[str, spaces.Space]]) -> spaces.Dict:
    """Makes a space of spaces by names, in this order: Gymnasium sorts what is a plain ``dict``."""
    return spaces.Dict(collections.OrderedDict(pairs))


checkpoints.register(
    "$box",
    spaces.Box,
    lambda s: [s.low, s.high, s.dtype, s.bounded_below, s.bounded_above],
    lambda parts: box(*parts),
)
checkpoints.register(
    "$discrete",
    spaces.Discrete,
    lambda s: [int(s.n), int(s.start), s.dtype],
    lambda parts: discrete(*parts),
)
checkpoints.register(
    "$multidiscrete",
    spaces.MultiDiscrete,
    lambda s: [s.nvec, s.start, s.dtype],
    lambda parts: multi_discrete(*parts),
)
checkpoints.register(
    "$multibinary",
    spaces.MultiBinary,
    lambda s: s.n if isinstance(s.n, int) else [int(n) for n in s.n],
    multi_binary,
)
checkpoints.register(
    "$dict", spaces.Dict, lambda s: [list(pair) for pair in s.spaces.items()], dictionary
)
checkpoints.register("$product", spaces.Tuple, lambda s: list(s.spaces), spaces.Tuple)


def constant(val: float) -> utils.ConstantSchedule:
    """Makes a schedule that stays where it is."""
    return utils.ConstantSchedule(float(val))


def linear(start: float, end: float, end_fraction: float) -> utils.LinearSchedule:
    """Makes a schedule that goes from one number to another."""
    return utils.LinearSchedule(float(start), float(end), float(end_fraction))


def of_numbers(value_schedule: Any) -> utils.FloatSchedule:
    """Wraps a schedule, as Stable-Baselines3 does."""
    if not callable(value_schedule):
        raise CheckpointError(f"a schedule is a function, not {type(value_schedule).__name__}")
    return utils.FloatSchedule(value_schedule)


checkpoints.register("$schedule", utils.FloatSchedule, lambda s: s.value_schedule, of_numbers)
checkpoints.register("$constant", utils.ConstantSchedule, lambda s: s.val, constant)
checkpoints.register(
    "$linear",
    utils.LinearSchedule,
    lambda s: [s.start, s.end, s.end_fraction],
    lambda parts: linear(*parts),
)
