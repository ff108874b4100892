"""Making an agent from what its file holds, as Stable-Baselines3's ``load`` does."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Number
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import recursive_getattr
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces

from npg.errors import CheckpointError, ConfigurationError, NumericalError

if TYPE_CHECKING:
    from agents.one_file import OneFile

Agent = TypeVar("Agent", bound="OneFile")

_OURS = (CheckpointError, ConfigurationError, NumericalError)


@contextmanager
def reading(entry: str) -> Iterator[None]:
    """Makes an error of a file's content one that says where in the file the reason is.

    Args:
        entry: The file, or what of it is used.

    Yields:
        Nothing.

    Raises:
        CheckpointError: For whatever a content leads to that nobody saved.
    """
    try:
        yield
    except _OURS:
        raise
    except Exception as error:
        raise CheckpointError(f"{entry} does not fit: {type(error).__name__}: {error}") from error


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
        CheckpointError: If attributes are missing that every agent has, or they or the states are
            none of such an agent.
        ValueError: If the environments have other spaces, or ``policy_kwargs`` is to change.
    """
    _check_attributes(kind, attributes)
    settings = attributes["policy_kwargs"]
    settings.pop("device", None)
    architecture = settings.get("net_arch")
    if isinstance(architecture, list) and architecture and isinstance(architecture[0], dict):
        settings["net_arch"] = architecture[0]  # as it was written before Stable-Baselines3 1.8
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
    with reading("an attribute of the checkpoint, or an argument in its place,"):
        model = kind(attributes["policy_class"], env, device=device, _init_setup_model=False)
        _check_kinds(vars(model), attributes)
        vars(model).update(attributes)
        vars(model).update(changed)
        model._setup_model()
    give_states(model, states)
    if model.use_sde:
        model.policy.reset_noise()
    return model


def give_states(model: "OneFile", states: Mapping[str, Any], exact_match: bool = True) -> None:
    """Gives policy and optimizers the states that stood in a file.

    Args:
        model: The agent.
        states: State dictionaries by name.
        exact_match: Whether there must be one for everything that has one.

    Raises:
        CheckpointError: If they are those of something else.
    """
    expected = {*model._get_torch_save_params()[0]}
    if not states.keys() <= expected or (exact_match and states.keys() != expected):
        raise CheckpointError(
            f"the checkpoint has the states {sorted(states)}, and the agent {sorted(expected)}"
        )
    for name, state in states.items():
        with reading(f"states.{name}"):
            target = recursive_getattr(model, name)
            if isinstance(target, torch.optim.Optimizer):
                _load_optimizer(target, state, name)
            else:
                target.load_state_dict(state, strict=exact_match)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], name: str) -> None:
    """Loads a state, and looks whether it is one of these parameters."""
    before = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for old, new in zip(before, optimizer.param_groups, strict=True):
        _check_kinds(old, new, f"states.{name}: ")
    # The fused kernels believe that moments have the shapes of parameters, and where they have not,
    # write past their ends.
    if "fused" not in optimizer.defaults:
        return
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            shape = getattr(value, "shape", None)
            if key != "step" and shape != getattr(parameter, "shape", None):
                raise CheckpointError(
                    f"states.{name}: {key} of a parameter of shape "
                    f"{tuple(getattr(parameter, 'shape', ()))} is {_short(value)}"
                )
            if key == "step" and (not isinstance(value, torch.Tensor) or value.ndim > 0):
                raise CheckpointError(f"states.{name}: a step is no number but {_short(value)}")


def _check_attributes(kind: type["OneFile"], attributes: dict[str, Any]) -> None:
    missing = {"policy_class", "observation_space", "action_space"} - attributes.keys()
    if missing:
        raise CheckpointError(f"the checkpoint lacks {sorted(missing)}: it was saved without them")
    for name in attributes:
        # An attribute would take the place of a method.
        if not name.isidentifier() or inspect.getattr_static(kind, name, None) is not None:
            raise CheckpointError(f"agent.{name}: {kind.__name__} has no such attribute to save")
    policy = attributes["policy_class"]
    if not isinstance(policy, str) and not (
        isinstance(policy, type) and issubclass(policy, BasePolicy)
    ):
        raise CheckpointError(f"agent.policy_class is no class of policies, but {_short(policy)}")
    if not isinstance(attributes.setdefault("policy_kwargs", {}), dict):
        settings = attributes["policy_kwargs"]
        raise CheckpointError(f"agent.policy_kwargs is no dictionary, but {_short(settings)}")
    for name in ("observation_space", "action_space"):
        if not isinstance(attributes[name], spaces.Space):
            raise CheckpointError(f"agent.{name} is no space, but {_short(attributes[name])}")


def _check_kinds(expected: Mapping[str, Any], found: Mapping[str, Any], place: str = "") -> None:
    """Whether numbers are where numbers were, strings where strings."""
    place = place or "agent."
    for name, value in found.items():
        usual = expected.get(name)
        if isinstance(usual, Number | torch.Tensor):
            fits = isinstance(value, Number | torch.Tensor | None) or callable(value)
        elif isinstance(usual, str | dict):
            fits = isinstance(value, type(usual)) or (value is None and isinstance(usual, str))
        else:
            fits = True
        if not fits:
            raise CheckpointError(
                f"{place}{name} is {_short(value)}, where {_short(usual)} is usual"
            )


def _short(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    kind = f"{type(value).__name__}"
    return f"{value!r}"[:40] if isinstance(value, Number | str | None) else f"a {kind}"
