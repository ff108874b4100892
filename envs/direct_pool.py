"""EnvPool's C++ calls without the Python around them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from envs.envpool_library import Pool

# In the order in which `recv` returns them.
_KEYS = ("obs", "reward", "done", "trunc")

# `recv` spins before it sleeps. Where the pool's threads take all processors, one of them seems to
# wait for the processor meanwhile. Giving way first saves 8 % of the time of 8 HalfCheetahs on 2
# processors, 14 % of 8 CartPoles; 64 HalfCheetahs take 2 % more. Once is worse, 2 to 8 times alike.
_GIVEN_WAY = 3 if hasattr(os, "sched_yield") else 0


class DirectPool:
    """A pool whose steps go straight to C++; resets are the pool's own.

    At every step EnvPool's `send` and `recv` rebuild dictionaries that never change, and infos that
    nobody here reads: a tenth of the time of 8 MuJoCo environments on 2 cores.

    Args:
        pool: a pool for which :meth:`applies`, after its first reset.
    """

    def __init__(self, pool: Any) -> None:
        """Note where the arrays are; see the class."""
        self._pool = pool
        self.observation_space = pool.observation_space
        self._positions = [list(pool._state_keys).index(key) for key in _KEYS]
        self._action_position = list(pool._action_keys).index("action")
        self._message: list[np.ndarray] | None = None

    @staticmethod
    def applies(pool: Any) -> bool:
        """Say whether observations and actions are one array each, and the calls are there."""
        names = ("_state_keys", "_action_keys", "_from", "_send", "_recv")
        return (
            all(hasattr(pool, name) for name in names)
            and all(list(pool._state_keys).count(key) == 1 for key in _KEYS)
            and list(pool._action_keys).count("action") == 1
        )

    def reset(self, env_id: np.ndarray | None = None) -> tuple[VecEnvObs, dict[str, np.ndarray]]:
        """Reset the environments of these int32 ids, or all; return observations and infos."""
        result: tuple[VecEnvObs, dict[str, np.ndarray]] = self._pool.reset(env_id)
        return result

    def send(self, action: np.ndarray) -> None:
        """Start a step of every environment."""
        if self._message is None:
            self._message = self._pool._from(action)
            self._pool.send(action)  # which checks the first call's types
            return
        # A new array every time, because the threads read it after this returns.
        position = self._action_position
        self._message[position] = action.astype(self._message[position].dtype, order="C")
        self._pool._send(self._message)

    def recv(
        self,
    ) -> tuple[VecEnvObs, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Return observations, rewards, terminated, truncated and no infos of that step."""
        for _ in range(_GIVEN_WAY):
            os.sched_yield()
        state = self._pool._recv()
        obs, rewards, ended, truncated = (state[i] for i in self._positions)
        return obs, rewards, ended & ~truncated, truncated, {}


def direct(pool: Pool) -> Pool:
    """Return the pool with direct calls, or as it is where they are not to be had."""
    return DirectPool(pool) if DirectPool.applies(pool) else pool
