"""The state of wrappers that is not in attributes of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import PassiveEnvChecker
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from envs.states import register

_COUNTED = ("episode_returns", "episode_lengths")


def _frames(stack: StackedObservations) -> dict[str, np.ndarray]:
    """The last frames, of each key of a dictionary if observations are such."""
    if isinstance(stack.observation_space, spaces.Dict):
        parts = stack.sub_stacked_observations.items()
        return {f"{key}.{k}": v for key, part in parts for k, v in _frames(part).items()}
    return {"": stack.stacked_obs}


def _take_frames(env: VecFrameStack) -> dict[str, Any]:
    return {key: frames.copy() for key, frames in _frames(env.stacked_obs).items()}


def _give_frames(env: VecFrameStack, state: dict[str, Any]) -> None:
    frames = _frames(env.stacked_obs)
    _check(state, frames)
    for key, array in frames.items():
        array[...] = state[key]


def _take_counts(env: VecMonitor) -> dict[str, Any]:
    counted = {name: getattr(env, name).copy() for name in _COUNTED}
    return {**counted, "episode_count": env.episode_count}


def _give_counts(env: VecMonitor, state: dict[str, Any]) -> None:
    present = {name: getattr(env, name) for name in _COUNTED}
    _check({name: state[name] for name in _COUNTED}, present)
    if type(state["episode_count"]) is not int:
        raise ValueError("VecMonitor counts episodes by an integer")
    for name in _COUNTED:
        setattr(env, name, state[name].copy())
    env.episode_count = state["episode_count"]


def _check(state: dict[str, Any], present: dict[str, np.ndarray]) -> None:
    if state.keys() != present.keys() or any(
        not isinstance(state[k], np.ndarray)
        or (state[k].shape, state[k].dtype) != (v.shape, v.dtype)
        for k, v in present.items()
    ):
        raise ValueError("the state is one of other observations or environments")


def _give_nothing(env: PassiveEnvChecker, state: dict[str, Any]) -> None:
    """Its checks were made when the state was taken; they would miss the reset before them."""
    env.checked_reset = env.checked_step = env.checked_data_reuse = True


register(PassiveEnvChecker, lambda env: {}, _give_nothing)
register(VecFrameStack, _take_frames, _give_frames)
register(VecMonitor, _take_counts, _give_counts)
