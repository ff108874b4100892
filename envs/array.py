"""Vectors of environments that are stepped as arrays, with nothing behind an index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices


class ArrayVecEnv(VecEnv):
    """What Stable-Baselines3 asks of single environments, answered where there are none.

    Args:
        num_envs: number of environments.
        observation_space: of each.
        action_space: of each.
        attributes: what all environments share, for `get_attr`; `render_mode` must be there.
        refusal: the error for what only a Python environment has, `{}` in the place of what.
    """

    def __init__(
        self,
        num_envs: int,
        observation_space: gym.Space,
        action_space: gym.Space,
        attributes: Mapping[str, object],
        refusal: str,
    ) -> None:
        """Note what there is; see the class."""
        self._attributes = {
            **attributes,
            "observation_space": observation_space,
            "action_space": action_space,
        }
        self._refusal = refusal
        super().__init__(num_envs, observation_space, action_space)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[object]:
        """Return one of the attributes that all environments share, `render_mode` for instance.

        Args:
            attr_name: which.
            indices: which environments; all by default.

        Returns:
            One value per environment asked for.

        Raises:
            AttributeError: another attribute.
        """
        if attr_name not in self._attributes:
            self._refuse(f"attribute {attr_name!r}")
        return [self._attributes[attr_name] for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """Refuse: there is no Python environment to write to.

        Args:
            attr_name: unused.
            value: unused.
            indices: unused.

        Raises:
            AttributeError: always.
        """
        self._refuse(f"attribute {attr_name!r} to set")

    def env_method(
        self,
        method_name: str,
        *method_args: object,
        indices: VecEnvIndices = None,
        **method_kwargs: object,
    ) -> list[object]:
        """Refuse: there is no Python environment to call.

        Args:
            method_name: unused.
            *method_args: unused.
            indices: unused.
            **method_kwargs: unused.

        Raises:
            AttributeError: always.
        """
        self._refuse(f"method {method_name!r}")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Say that the environments are monitored, and wrapped in nothing else.

        Args:
            wrapper_class: the wrapper to look for.
            indices: which environments; all by default.

        Returns:
            One answer per environment asked for.
        """
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def _refuse(self, what: str) -> NoReturn:
        """Raise the error for what only a Python environment has."""
        raise AttributeError(self._refusal.format(what))
