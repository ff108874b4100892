"""Making an agent from what its file holds, as Stable-Baselines3's ``load`` does."""

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces

from npg.errors import CheckpointError

if TYPE_CHECKING:
    from agents.one_file import OneFile

Agent = TypeVar("Agent", bound="OneFile")


def built(
    kind: type[Agent],
    attributes: dict[str, Any],
    states: dict[str, Any],
    env: GymEnv | None,
    device: torch.device | str,
    force_reset: bool,
    changed: dict[str, Any],
) -> Agent:
    """Makes an agent.

    Args:
        kind: Its class.
        attributes: Of the agent that was saved.
        states: State dictionaries of its policy and optimizers.
        env: Environments to train on; None to predict only.
        device: Where to put the policy.
        force_reset: Whether training starts with a reset of the environments.
        changed: Attributes that take the place of saved ones.

    Returns:
        The agent, with the states of its policy and optimizers.

    Raises:
        CheckpointError: If attributes are missing that every agent has.
        ValueError: If the environments have other spaces, or ``policy_kwargs`` is to change.
    """
    missing = {"policy_class", "observation_space", "action_space"} - attributes.keys()
    if missing:
        raise CheckpointError(f"the checkpoint lacks {sorted(missing)}: it was saved without them")
    settings = attributes.get("policy_kwargs", {})
    settings.pop("device", None)
    if "policy_kwargs" in changed and changed["policy_kwargs"] != settings:
        raise ValueError(
            "policy_kwargs cannot be changed: the file's parameters are those of a policy with "
            f"{settings}, got {changed['policy_kwargs']}"
        )
    if env is not None:
        env = kind._wrap_env(env, attributes.get("verbose", 0))
        check_for_correct_spaces(env, attributes["observation_space"], attributes["action_space"])
        if force_reset:
            attributes["_last_obs"] = None
        attributes["n_envs"] = env.num_envs
    model = kind(attributes["policy_class"], env, device=device, _init_setup_model=False)
    vars(model).update(attributes)
    vars(model).update(changed)
    model._setup_model()
    model.set_parameters(states, exact_match=True, device=device)
    if model.use_sde:
        model.policy.reset_noise()
    return model
