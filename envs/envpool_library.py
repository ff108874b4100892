"""What is used of the envpool package: optional, without types, with spaces of its own."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

if TYPE_CHECKING:
    from types import ModuleType


class Pool(Protocol):
    """A vector of environments that reset on the step after their last."""

    observation_space: spaces.Space[object]

    def reset(self, env_id: np.ndarray | None = None) -> tuple[VecEnvObs, dict[str, np.ndarray]]:
        """Reset the environments of these int32 ids, or all; return observations and infos."""

    def send(self, action: np.ndarray) -> None:
        """Start a step of every environment."""

    def recv(
        self,
    ) -> tuple[VecEnvObs, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Return observations, rewards, terminated, truncated and infos of that step."""


@dataclass(frozen=True)
class Description:
    """An environment of EnvPool in gymnasium's terms."""

    observation_space: spaces.Space[object]
    action_space: spaces.Space[object]
    spec: EnvSpec


def import_envpool() -> ModuleType:
    """Import envpool, which is optional and slow to import.

    Returns:
        The module.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import envpool
    except ImportError as error:
        raise ImportError(
            "EnvPool is not installed: run `pip install .[envpool]`, or use backend='gymnasium'"
        ) from error
    return envpool


def describe(env_id: str) -> Description:
    """Look an environment up without making it.

    Args:
        env_id: a name from `envpool.list_all_envs()`.

    Returns:
        Its spaces and its specification.

    Raises:
        ImportError: EnvPool is not installed.
        ValueError: it does not have the environment, or this has several players or spaces that
            Stable-Baselines3 has no place for.
    """
    envpool = import_envpool()
    if env_id not in envpool.list_all_envs():
        raise ValueError(f"EnvPool has no environment {env_id!r}: use backend='gymnasium'")
    with _quiet():
        spec = envpool.make_spec(env_id)
        observation_space = spec.gymnasium_observation_space
        action_space = spec.gymnasium_action_space
    if spec.config.max_num_players != 1:
        raise ValueError(f"{env_id!r} has several players: only one is supported")
    return Description(
        observation_space=_flat(observation_space, "observation"),
        action_space=_single_precision(_flat(action_space, "action")),
        spec=_gymnasium_spec(env_id, spec.config.max_episode_steps),
    )


def build(env_id: str, num_envs: int, seeds: Sequence[int | None], num_threads: int | None) -> Pool:
    """Make the environments.

    Args:
        env_id: a name from `envpool.list_all_envs()`.
        num_envs: number of environments.
        seeds: one per environment, signed 32-bit integers.
        num_threads: C++ threads; by default one per environment up to the available processors.

    Returns:
        The pool, in synchronous mode.
    """
    threads = num_threads or min(num_envs, len(_available_processors()))
    with _quiet():
        pool: Pool = import_envpool().make_gymnasium(
            env_id,
            num_envs=num_envs,
            num_threads=threads,
            thread_affinity_offset=_first_processor(threads),
            env_seed=list(seeds),
        )
        # Made at its first use, which would warn later.
        _ = pool.observation_space
    return pool


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence gymnasium on float32 spaces with float64 bounds, which EnvPool makes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        yield


def _available_processors() -> set[int]:
    """List the processors that this process may use, fewer than the machine's in a container."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _first_processor(threads: int) -> int:
    """Return the processor of the first thread, the next one being the second's; -1 for any.

    Threads that share a processor step one after the other, and where they wake up for each step
    the system moves them too late: a tenth of the time of 8 MuJoCo environments on 2 processors.
    Fewer threads than processors are left to the system, which knows what other processes do.
    """
    machine = set(range(os.cpu_count() or 1))
    return 0 if threads == len(machine) and _available_processors() == machine else -1


def _flat(space: spaces.Space[object], role: str) -> spaces.Space[object]:
    """Return the space, or raise ValueError if Stable-Baselines3 has no place for it."""
    plain = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    parts = space.values() if isinstance(space, spaces.Dict) else [space]
    if not all(isinstance(part, plain) for part in parts):
        raise ValueError(f"Stable-Baselines3 does not support the {role} space {space}")
    return space


def _single_precision(space: spaces.Space[object]) -> spaces.Space[object]:
    """Turn a float64 Box of actions to float32, as gymnasium declares them."""
    # Stable-Baselines3 demands equal spaces when a model moves to another environment.
    if isinstance(space, spaces.Box) and space.dtype == np.float64:
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        return spaces.Box(low, high, dtype=np.float32)
    return space


def _gymnasium_spec(env_id: str, max_episode_steps: int) -> EnvSpec:
    """Describe the environment as gymnasium does; it need not be registered there."""
    registered = gym.registry.get(env_id)
    spec = copy.copy(registered) if registered is not None else EnvSpec(env_id)
    spec.max_episode_steps = max_episode_steps
    return spec
