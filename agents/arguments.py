"""Checks of constructor arguments that several agents share; each names what it refuses."""

import math
from numbers import Integral, Real
from typing import Any

from npg.errors import ConfigurationError


class BatchOfOneError(ConfigurationError, AssertionError):
    """One sample has no standard deviation; sb3-contrib raises AssertionError here."""


def check_whole(**arguments: Any) -> None:
    """Refuses what is not a whole number above 0."""
    for name, value in arguments.items():
        if not (isinstance(value, Integral) and value >= 1):
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


def check_samples_to_normalise(n_steps: int, num_envs: int) -> None:
    """Refuses rollouts of one sample, whose advantage has no deviation to divide by.

    Args:
        n_steps: Steps per environment.
        num_envs: Environments.

    Raises:
        BatchOfOneError: If there is one sample.
    """
    if n_steps * num_envs < 2:
        raise BatchOfOneError(
            "`n_steps * n_envs` must be greater than 1 to normalise the advantage. "
            f"Currently n_steps={n_steps} and n_envs={num_envs}"
        )
