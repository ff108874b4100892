"""Where an agent's training environments are, as part of its checkpoint."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
        states.give(model.env, saved["state"])
    except states.NoState as reason:
        return str(reason)
    model._last_obs = saved["last_obs"]
    model._last_episode_starts = saved["last_episode_starts"]
    return ""
