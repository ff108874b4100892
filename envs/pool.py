"""EnvPool's C++ simulators behind Stable-Baselines3's vector interface."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from envs.array import ArrayVecEnv
from envs.direct_pool import direct
from envs.envpool_library import Pool, build, describe


class EnvPoolVecEnv(ArrayVecEnv):
    """Environments of EnvPool, stepped by C++ threads, that end episodes as `DummyVecEnv` does.

    EnvPool resets a finished environment on the *next* step and ignores that step's action. Here
    it is reset at once, so that each step is one transition in each environment. Episodes are
    accounted as `Monitor` does. Infos are empty except at the end of an episode; there is no
    Python environment behind an index, and so no rendering and no `env_method`.

    EnvPool reports a termination that falls on the very last step of the time limit as a
    truncation; nothing that it returns tells the two apart.

    Args:
        env_id: a name from `envpool.list_all_envs()`.
        num_envs: number of environments.
        seed: environment i is seeded with `seed + i`; None draws one from NumPy's global state.
        num_threads: C++ threads; by default one per environment up to the available processors.
            With as many as the machine has processors, each keeps to one of them; with fewer, the
            system moves them, which suits a machine that does other work.

    Raises:
        ImportError: EnvPool is not installed.
        ValueError: EnvPool does not have `env_id`, or it has several players, or its spaces are
            not Box, Discrete, MultiDiscrete, MultiBinary or a flat Dict of them.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        seed: int | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Describe the environments, which `reset` makes; see the class."""
        description = describe(env_id)
        action_space = description.action_space
        super().__init__(
            num_envs,
            description.observation_space,
            action_space,
            {**vars(description), "render_mode": None},
            f"{env_id!r} is simulated by EnvPool, which has no {{}}: use backend='gymnasium'",
        )
        self._env_id = env_id
        self._num_threads = num_threads
        self._pool: Pool | None = None  # made by `reset`, which knows the seeds
        self._stepping = False
        self._action_shape = (num_envs, *(action_space.shape or ()))
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._start = time.time()
        self.seed(seed)

    def reset(self) -> VecEnvObs:
        """Start a new episode in every environment, with the seeds set before, if any.

        Returns:
            Observations (num_envs, *observation_shape), or a dictionary of them.
        """
        if self._stepping:
            self._running_pool().recv()
            self._stepping = False
        if self._pool is None or self._seeds[0] is not None:
            # EnvPool takes seeds at construction only.
            self._pool = direct(build(self._env_id, self.num_envs, self._seeds, self._num_threads))
            self._reset_seeds()
        self._returns[:], self._lengths[:] = 0.0, 0
        obs, _ = self._pool.reset()
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """Send the actions; the threads start to work.

        Args:
            actions: shape (num_envs, *action_shape).

        Raises:
            RuntimeError: `reset` was never called.
            ValueError: the shape of `actions` is wrong.
        """
        pool = self._running_pool()
        actions = np.asarray(actions)
        if actions.shape != self._action_shape:
            # EnvPool checks the first call only, and would read foreign memory afterwards.
            raise ValueError(f"expected actions of shape {self._action_shape}, got {actions.shape}")
        pool.send(actions)
        self._stepping = True

    def step_wait(self) -> VecEnvStepReturn:
        """Collect the step that `step_async` started; environments that finish are reset at once.

        Returns:
            Observations (num_envs, *observation_shape), or a dictionary of them; rewards float32
            (num_envs,); dones bool (num_envs,); one info per environment. Where done, the
            observation is the first of the next episode, and the info holds
            `"terminal_observation"`, `"TimeLimit.truncated"` and `"episode"`.
        """
        obs, rewards, terminated, truncated, _ = self._running_pool().recv()
        self._stepping = False
        self._returns += rewards
        self._lengths += 1
        dones = terminated | truncated
        # One dictionary each: a wrapper may write to the info of one environment.
        infos: list[dict[str, object]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            self._end_episodes(np.flatnonzero(dones), obs, truncated & ~terminated, infos)
        return obs, rewards, dones, infos

    def _end_episodes(
        self,
        finished: np.ndarray,
        obs: VecEnvObs,
        timed_out: np.ndarray,
        infos: list[dict[str, object]],
    ) -> None:
        """Fill the infos of finished environments, reset these, put in their new observations.

        Args:
            finished: their indices.
            obs: observations after the step, overwritten where an episode ended.
            timed_out: bool (num_envs,), truncated without being terminated.
            infos: one per environment, filled.
        """
        seconds = round(time.time() - self._start, 6)
        for index in finished.tolist():
            infos[index]["terminal_observation"] = _take(obs, index)
            infos[index]["TimeLimit.truncated"] = bool(timed_out[index])
            infos[index]["episode"] = {
                "r": round(float(self._returns[index]), 6),
                "l": int(self._lengths[index]),
                "t": seconds,
            }
        self._returns[finished], self._lengths[finished] = 0.0, 0
        first, info = self._running_pool().reset(finished.astype(np.int32))
        # Threads may finish in any order: the ids that come back say whose observation is whose.
        if isinstance(obs, dict) and isinstance(first, dict):
            for key, values in obs.items():
                values[info["env_id"]] = first[key]
        else:
            obs[info["env_id"]] = first  # type: ignore[assignment,index]

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Set the seeds of the next `reset`, which builds the pool again.

        Args:
            seed: environment i gets `seed + i`; None draws one from NumPy's global state.

        Returns:
            The seed of each environment.
        """
        super().seed(seed)
        # EnvPool's seeds are signed 32-bit integers.
        self._seeds = [value % 2**31 for value in self._seeds if value is not None]
        return self._seeds

    def set_options(
        self, options: list[dict[str, object]] | dict[str, object] | None = None
    ) -> None:
        """Refuse reset options, which EnvPool does not have.

        Args:
            options: must be empty.

        Raises:
            ValueError: they are not.
        """
        if options and any([options] if isinstance(options, dict) else options):
            raise ValueError("EnvPool has no reset options: use backend='gymnasium'")

    def close(self) -> None:
        """Let the threads end with the pool that owns them."""
        self._pool = None

    def _running_pool(self) -> Pool:
        """Return the pool, or raise RuntimeError if `reset` has not made it yet."""
        if self._pool is None:
            raise RuntimeError("call reset() before the first step")
        return self._pool


def _take(obs: VecEnvObs, index: int) -> np.ndarray | dict[str, np.ndarray]:
    """Copy the observation of one environment."""
    if isinstance(obs, dict):
        return {key: values[index].copy() for key, values in obs.items()}
    return obs[index].copy()
