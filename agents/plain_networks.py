"""Fully connected networks of a policy, where nothing can make it behave in another way.

A 64-64 network costs more in Python calls than in arithmetic. Where a policy's actor or critic is
known to be nothing but linear layers with activations between them, acting and fitting values may
work on these layers directly.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
from stable_baselines3.common.torch_layers import (
    CombinedExtractor,
    FlattenExtractor,
    MlpExtractor,
)
from torch import Tensor, nn

from agents.rollout import Observations

Layers = list[tuple[nn.Linear, nn.Module | None]]

# What a subclass may override without a trace in the layers: then the policy itself must be called.
_METHODS = (
    "forward",
    "_predict",
    "predict_values",
    "get_distribution",
    "evaluate_actions",
    "extract_features",
    "_get_action_dist_from_latent",
    "set_training_mode",
)


def actor_layers(policy: ActorCriticPolicy, space: spaces.Space) -> Layers | None:
    """Finds the layers from the features to the action distribution's tensor.

    Args:
        policy: Any policy.
        space: Its observation space.

    Returns:
        The linear layers, each with the activation module after it; None where an overridden
        method, a hook, another feature extractor or another module is in the way.
    """
    return plain_layers(policy, space)[0]


def critic_layers(policy: ActorCriticPolicy, space: spaces.Space) -> Layers | None:
    """Finds the layers from the features to the value, like :func:`actor_layers`."""
    return plain_layers(policy, space)[1]


def plain_layers(
    policy: ActorCriticPolicy, space: spaces.Space
) -> tuple[Layers | None, Layers | None]:
    """Finds both: what :func:`actor_layers` and :func:`critic_layers` return."""
    if not _plain(policy):
        return None, None
    extractor, actor, critic = policy.mlp_extractor, None, None
    if _plain_features(policy.pi_features_extractor, space):
        actor = _layers([*extractor.policy_net, policy.action_net])
    if _plain_features(policy.vf_features_extractor, space):
        critic = _layers([*extractor.value_net, policy.value_net])
    return actor, critic


def plain_features(policy: ActorCriticPolicy, observations: Observations) -> Tensor:
    """The features [N, D] that plain layers start from: observations flattened, side by side."""
    if isinstance(observations, Tensor):
        return observations.flatten(1).float()
    with torch.no_grad():  # the policy's own method takes no extractor where these are separate
        return BaseModel.extract_features(policy, observations, policy.vf_features_extractor)


def output_of(layers: Layers, x: Tensor) -> Tensor:
    """Runs layers on rows [N, D] past the modules' own calls."""
    for linear, activation in layers:
        x = F.linear(x, linear.weight, linear.bias)
        if activation is not None:
            x = activation(x)
    return x


def action_distribution(policy: ActorCriticPolicy, output: Tensor) -> Distribution:
    """The action distribution of a plain actor's output [N, K], as the policy would make it."""
    if isinstance(policy.action_dist, DiagGaussianDistribution):
        return policy.action_dist.proba_distribution(output, policy.log_std)
    return policy.action_dist.proba_distribution(output)


def _plain(policy: ActorCriticPolicy) -> bool:
    return (
        isinstance(policy, ActorCriticPolicy)
        and all(getattr(type(policy), m) is getattr(ActorCriticPolicy, m) for m in _METHODS)
        and type(policy.mlp_extractor) is MlpExtractor
        and not any(map(_altered, _modules(policy)))
    )


def _modules(root: nn.Module) -> list[nn.Module]:
    """All modules of a policy, in a third of the time of its ``modules()``."""
    found = {root: None}
    waiting = [root]
    while waiting:
        for module in waiting.pop()._modules.values():
            if module is not None and module not in found:
                found[module] = None
                waiting.append(module)
    return list(found)


def _layers(modules: list[nn.Module]) -> Layers | None:
    layers: Layers = []
    for module in modules:
        if type(module) is nn.Linear:
            layers.append((module, None))
        elif layers and layers[-1][1] is None:
            layers[-1] = (layers[-1][0], module)
        else:
            return None
    return layers


def _plain_features(extractor: nn.Module, space: spaces.Space) -> bool:
    """Whether the features are the observations themselves, flattened and side by side."""
    if isinstance(space, spaces.Dict):
        return type(extractor) is CombinedExtractor and all(
            _is_vector(inner) and type(extractor.extractors[key]) is nn.Flatten
            for key, inner in space.spaces.items()
        )
    return type(extractor) is FlattenExtractor and _is_vector(space)


def _is_vector(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)


def _altered(module: nn.Module) -> bool:
    """Whether a hook, a patched method or a parametrisation could change what a module does."""
    own = vars(module)
    if (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "parametrizations" in own["_modules"]
    ):
        return True
    known = _callables(type(module))
    return not known.isdisjoint(own) and any(callable(own[name]) for name in known & own.keys())


@functools.cache
def _callables(kind: type) -> frozenset[str]:
    return frozenset(name for name in dir(kind) if callable(getattr(kind, name, None)))
