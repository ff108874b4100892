"""Fully connected networks of a policy, where nothing can make it behave in another way.

A 64-64 network costs more in Python calls than in arithmetic. Where a policy's actor or critic is
known to be nothing but linear layers with activations between them, acting and fitting values may
work on these layers directly.
"""

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import (
    CombinedExtractor,
    FlattenExtractor,
    MlpExtractor,
)
from torch import nn

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
    if not _plain(policy, "pi_features_extractor", space):
        return None
    return _layers([*policy.mlp_extractor.policy_net, policy.action_net])


def critic_layers(policy: ActorCriticPolicy, space: spaces.Space) -> Layers | None:
    """Finds the layers from the features to the value, like :func:`actor_layers`."""
    if not _plain(policy, "vf_features_extractor", space):
        return None
    return _layers([*policy.mlp_extractor.value_net, policy.value_net])


def _plain(policy: ActorCriticPolicy, extractor: str, space: spaces.Space) -> bool:
    return (
        isinstance(policy, ActorCriticPolicy)
        and all(getattr(type(policy), m) is getattr(ActorCriticPolicy, m) for m in _METHODS)
        and _plain_features(getattr(policy, extractor), space)
        and type(policy.mlp_extractor) is MlpExtractor
        and not any(_altered(module) for module in policy.modules())
    )


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
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hasattr(module, "parametrizations")
        or any(
            callable(v) and callable(getattr(type(module), k, 0)) for k, v in vars(module).items()
        )
    )
