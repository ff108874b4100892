"""Where an agent's training environments are, as part of its checkpoint."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from envs import states

if TYPE_CHECKING:
    from agents.on_policy import OnPolicy

NOTHING_SAVED = "the checkpoint was saved without the state of its environments"


def environment_state(model: "OnPolicy") -> dict[str, Any]:
    """Takes the state of an agent's environments.

    Args:
        model: The agent, between an update and the next rollout.

    Returns:
        The state and what the agent saw last, or the reason why there is none.
    """
    if model.env is None or model._last_obs is None:
        return {"reason": "the agent had not begun to train"}
    try:
        taken = states.take(model.env)
    except states.NoState as reason:
        return {"reason": str(reason)}
    return {
        "state": taken,
        "last_obs": model._last_obs,
        "last_episode_starts": model._last_episode_starts,
    }


def restore_environments(model: "OnPolicy", saved: Mapping[str, Any]) -> str:
    """Puts an agent's environments into a state.

    Args:
        model: The agent, with its environments.
        saved: What :func:`environment_state` returned.

    Returns:
        Why it cannot be done; empty if it was done.
    """
    if "state" not in saved:
        return str(saved.get("reason", NOTHING_SAVED))
    if model.env is None:
        return "the agent has no environments"
    try:
        observed, starts = saved["last_obs"], saved["last_episode_starts"]
        _check(model.env, observed, starts)
        states.give(model.env, saved["state"])
    except KeyError as name:
        return f"the checkpoint has the state of its environments, but not {name}"
    except (states.NoState, ValueError) as reason:
        return str(reason)
    model._last_obs, model._last_episode_starts = observed, starts
    return ""


def _check(env: VecEnv, observed: object, starts: object) -> None:
    """Raises a ValueError unless these are what environments showed last."""
    space = env.observation_space
    parts = space.spaces if isinstance(space, spaces.Dict) else {None: space}
    found = observed if isinstance(space, spaces.Dict) else {None: observed}
    fit = isinstance(found, Mapping) and found.keys() == parts.keys()
    if not fit or not all(
        _is_array(found[key], (env.num_envs, *parts[key].shape)) for key in parts
    ):
        raise ValueError("the checkpoint's last observations are none of these environments")
    if not _is_array(starts, (env.num_envs,)):
        raise ValueError("the checkpoint does not say which environments begin an episode")


def _is_array(value: object, shape: tuple[int, ...]) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.shape == shape
