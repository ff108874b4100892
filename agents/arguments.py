"""Checks of constructor arguments that several agents share; each names what it refuses."""

import math
import warnings
from numbers import Integral, Real
from typing import Any

from npg.errors import ConfigurationError


class BatchOfOneError(ConfigurationError, AssertionError):
    """One sample has no standard deviation; sb3-contrib raises AssertionError here."""


class ClipRangeError(ConfigurationError, AssertionError):
    """Nothing is left of a range that is not positive; SB3 raises AssertionError here."""


def check_whole(**arguments: Any) -> None:
    """Refuses what is not a whole number above 0; True is a switch, not 1."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not (isinstance(value, Integral) and value >= 1):
            raise ConfigurationError(f"{name} must be a whole number above 0, got {value!r}")


def check_fractions(**arguments: Any) -> None:
    """Refuses what is not between 0 and 1."""
    for name, value in arguments.items():
        if not (isinstance(value, Real) and 0 <= value <= 1):
            raise ConfigurationError(f"{name} must be between 0 and 1, got {value!r}")


def check_not_negative(**arguments: Any) -> None:
    """Refuses negative numbers, and those that are not finite."""
    for name, value in arguments.items():
        if not (isinstance(value, Real) and 0 <= value < math.inf):
            raise ConfigurationError(f"{name} must not be negative, and finite, got {value!r}")


def check_positive(**arguments: Any) -> None:
    """Refuses what is not above 0, and what is not finite."""
    for name, value in arguments.items():
        if not (isinstance(value, Real) and 0 < value < math.inf):
            raise ConfigurationError(f"{name} must be positive, and finite, got {value!r}")


def check_below_one(**arguments: Any) -> None:
    """Refuses weights of the past that are not in [0, 1)."""
    for name, value in arguments.items():
        if not (isinstance(value, Real) and 0 <= value < 1):
            raise ConfigurationError(
                f"{name} must be at least 0 and below 1 (at 1 nothing new would count), got "
                f"{value!r}"
            )


def check_more_samples(purpose: str, n_steps: int, num_envs: int) -> None:
    """Refuses rollouts of one sample, which has no deviation to divide by, and no others.

    Args:
        purpose: What it is too few for.
        n_steps: Steps per environment.
        num_envs: Environments.

    Raises:
        BatchOfOneError: If there is one sample.
    """
    if n_steps * num_envs < 2:
        raise BatchOfOneError(
            f"`n_steps * n_envs` must be greater than 1 to {purpose}. "
            f"Currently n_steps={n_steps} and n_envs={num_envs}"
        )


def check_samples_to_normalise(n_steps: int, num_envs: int) -> None:
    """The same for normalised advantages."""
    check_more_samples("normalise the advantage", n_steps, num_envs)


def check_clip_range(**arguments: Any) -> None:
    """Refuses numbers that are not above 0; schedules are taken at their word."""
    for name, value in arguments.items():
        if not (callable(value) or (isinstance(value, Real) and 0 < value < math.inf)):
            raise ClipRangeError(
                f"`{name}` must be positive, and finite, or a schedule, got {value!r}"
            )


def warn_of_truncated_batches(batch_size: int, n_steps: int, num_envs: int) -> None:
    """Warns of minibatches that do not divide the rollout.

    Args:
        batch_size: Samples per minibatch.
        n_steps: Steps per environment.
        num_envs: Environments.
    """
    samples = n_steps * num_envs
    if samples % batch_size:
        warnings.warn(
            f"You have specified a mini-batch size of {batch_size}, but the rollout has `n_steps * "
            f"n_envs = {samples}` samples: there will be a truncated mini-batch of size "
            f"{samples % batch_size} in every epoch. A `batch_size` that divides it avoids that.",
            stacklevel=4,
        )
