"""Vectorisation in one process at little more than the price of the environments."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class LeanVecEnv(DummyVecEnv):
    """`DummyVecEnv` of `Monitor`-wrapped environments without their cost per step.

    The observations, rewards, dones and final infos are those of Stable-Baselines3's pair; what
    is gone is the deep copy of every info at every step and the Python list of every reward.
    Two differences are visible: the infos of non-final steps are the environment's own
    dictionaries (copy one before writing to it), and `"TimeLimit.truncated"` is present at the
    end of an episode only. An environment that already carries a `Monitor` keeps it.

    Args:
        env_fns: one function per environment, each returning a new environment.

    Raises:
        ValueError: `env_fns` is empty, or two functions return the same environment.
    """

    def __init__(self, env_fns: list[Callable[[], gym.Env]]) -> None:
        """Make the environments; see the class."""
        if not env_fns:
            raise ValueError("env_fns is empty: pass one function per environment")
        super().__init__(env_fns)
        # Dictionaries and tuples have several buffers; everything else has exactly this one.
        self._single_buffer: np.ndarray | None = self.buf_obs.get(None)  # type: ignore[call-overload]
        single = self._single_buffer is not None
        self._single_shape = self.observation_space.shape if single else None
        self._has_monitor = [is_wrapped(env, Monitor) for env in self.envs]
        self._returns = [0.0] * self.num_envs
        self._lengths = [0] * self.num_envs
        self._start = time.time()

    def step(self, actions: np.ndarray) -> VecEnvStepReturn:
        """Take one step in every environment; those that finish are reset at once.

        Args:
            actions: shape (num_envs, *action_shape).

        Returns:
            Observations (num_envs, *observation_shape), or a dictionary of them; rewards float32
            (num_envs,); dones bool (num_envs,); one info per environment. The arrays are new at
            every call. Where done, the observation is the first of the next episode, and the info
            holds `"terminal_observation"`, `"TimeLimit.truncated"` and `"episode"` (return `"r"`,
            length `"l"`, seconds since construction `"t"`).

        Raises:
            Exception: whatever an environment raises, with a note that says which one and when.
            ValueError: an observation has not the shape of the observation space, likewise.
        """
        self.actions = actions
        return self.step_wait()

    def step_wait(self) -> VecEnvStepReturn:
        """Take the step that `step_async` announced.

        Returns:
            As `step`.
        """
        # This loop is the cost of every rollout: locals instead of attributes, no call per
        # environment but the environment's own, everything about episodes only at their end.
        envs, actions = self.envs, self.actions
        rewards, dones, buffer = self.buf_rews, self.buf_dones, self._single_buffer
        shape = self._single_shape
        returns, lengths = self._returns, self._lengths
        infos = []
        index = 0
        try:
            for index, env in enumerate(envs):
                obs, reward, terminated, truncated, info = env.step(actions[index])
                if getattr(obs, "shape", None) != shape:
                    self._check_shape(obs)
                rewards[index] = reward
                returns[index] += float(reward)
                lengths[index] += 1
                if terminated or truncated:
                    dones[index] = True
                    info = self._end_episode(index, obs, bool(truncated and not terminated), info)
                    obs, self.reset_infos[index] = env.reset()
                    self._check_shape(obs)
                else:
                    dones[index] = False
                infos.append(info)
                if buffer is not None:
                    buffer[index] = obs
                else:
                    self._check_shape(obs)
                    self._save_obs(index, obs)
        except Exception as error:
            # A finished episode has length 0 again: then it was `reset` that raised.
            self._annotate(error, index)
            raise
        self.buf_infos = infos
        return self._obs_from_buf(), rewards.copy(), dones.copy(), infos

    def reset(self) -> VecEnvObs:
        """Start a new episode in every environment, with the seeds and options set before.

        Returns:
            Observations (num_envs, *observation_shape), or a dictionary of them.

        Raises:
            Exception: whatever an environment raises, with a note that says which one.
            ValueError: an observation has not the shape of the observation space, likewise.
        """
        for index, env in enumerate(self.envs):
            self._returns[index], self._lengths[index] = 0.0, 0
            options = {"options": self._options[index]} if self._options[index] else {}
            try:
                obs, self.reset_infos[index] = env.reset(seed=self._seeds[index], **options)
                self._check_shape(obs)
                self._save_obs(index, obs)
            except Exception as error:
                self._annotate(error, index)
                raise
        self._reset_seeds()
        self._reset_options()
        return self._obs_from_buf()

    def episode_state(self) -> dict[str, object]:
        """Say how far the episodes are; the environments' own state is not among it.

        Returns:
            Returns and lengths so far, and the observations after the last step.
        """
        return {
            "returns": list(self._returns),
            "lengths": list(self._lengths),
            "observations": [buffer.copy() for buffer in self.buf_obs.values()],
        }

    def check_episode_state(self, state: dict[str, list]) -> None:
        """Refuse what `episode_state` cannot have said here.

        Args:
            state: what it is said to have returned.

        Raises:
            ValueError: it did not, or of other environments.
        """
        forms = [[(b.shape, b.dtype) for b in buffers] for buffers in self._buffers(state)]
        counted = [len(state["returns"]), len(state["lengths"])] == [self.num_envs] * 2
        numbers = all(isinstance(value, int | float) for value in state["returns"])
        counts = all(isinstance(value, int) and value >= 0 for value in state["lengths"])
        if not (counted and numbers and counts and forms[0] == forms[1]):
            raise ValueError("the state of the episodes is not that of such environments")

    def restore_episode_state(self, state: dict[str, list]) -> None:
        """Go on from what `episode_state` said; seeds that wait for a reset are dropped.

        Args:
            state: what it returned.

        Raises:
            ValueError: it did not, or of other environments; nothing has changed.
        """
        self.check_episode_state(state)
        self._returns, self._lengths = list(state["returns"]), list(state["lengths"])
        for buffer, saved in zip(*self._buffers(state), strict=True):
            buffer[...] = saved
        self._reset_seeds()
        self._reset_options()

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Say whether the environments are wrapped; always true of `Monitor`, whose work is ours.

        Args:
            wrapper_class: the wrapper to look for.
            indices: which environments; all by default.

        Returns:
            One answer per environment asked for.
        """
        wrapped = super().env_is_wrapped(wrapper_class, indices)
        return [True] * len(wrapped) if wrapper_class is Monitor else wrapped

    def _end_episode(
        self, index: int, obs: VecEnvObs, timed_out: bool, info: dict[str, object]
    ) -> dict[str, object]:
        """Complete the last info of an episode and clear its counters.

        Args:
            index: the environment.
            obs: its last observation.
            timed_out: truncated without being terminated.
            info: what the environment returned, which is left as it is.

        Returns:
            A new info.
        """
        # Copies: an environment may reuse its dictionary and its observation array.
        info = dict(info)
        info["terminal_observation"] = deepcopy(obs)
        info["TimeLimit.truncated"] = timed_out
        if not self._has_monitor[index]:
            info["episode"] = {
                "r": round(self._returns[index], 6),
                "l": self._lengths[index],
                "t": round(time.time() - self._start, 6),
            }
        self._returns[index], self._lengths[index] = 0.0, 0
        return info

    def _check_shape(self, obs: VecEnvObs) -> None:
        """Refuse an observation of another shape, of which NumPy would make copies if it can.

        Args:
            obs: of one environment.

        Raises:
            ValueError: it has not the shape of the observation space, or a part of it has not.
        """
        for key, buffer in self.buf_obs.items():
            part = obs if key is None else obs[key]  # type: ignore[call-overload]
            if np.shape(part) != buffer.shape[1:]:
                name = "" if key is None else f" {key!r}"
                raise ValueError(
                    f"an observation{name} has shape {np.shape(part)} instead of "
                    f"{buffer.shape[1:]}: return what the observation_space says"
                )

    def _obs_from_buf(self) -> VecEnvObs:
        """Copy the observation buffers, which the next step overwrites."""
        if self._single_buffer is not None:
            return self._single_buffer.copy()
        copies = {key: buffer.copy() for key, buffer in self.buf_obs.items()}
        if isinstance(self.observation_space, gym.spaces.Tuple):
            return tuple(copies.values())
        return copies

    def _buffers(self, state: dict[str, list]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the observation buffers, and those that a state has."""
        return list(self.buf_obs.values()), list(state["observations"])

    def _annotate(self, error: Exception, index: int) -> None:
        """Add to an exception which environment raised it, and when."""
        error.add_note(
            f"environment index {index} of {self.num_envs}, episode step {self._lengths[index]}"
        )
