"""Choosing actions during a rollout.

Only the actor's output is needed to act; values and log-probabilities of the whole rollout are
one batched call after it. A small fully connected policy acts through a NumPy mirror of its
parameters, any other policy through its own ``forward``.
"""

from collections.abc import Callable

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy

from agents.exploration import ExploringMirror, can_be_mirrored
from agents.mirrors import ACTIVATIONS, FINISHES, Mirror, MirroredLayers, RowMirror
from agents.plain_networks import Layers, actor_layers

# A row's noise goes through the last layer beside an identity matrix: above this that is more work
# than adding it.
FEW_OUTPUTS = 16


def mirror_of(
    policy: ActorCriticPolicy, layers: MirroredLayers, num_envs: int, num_steps: int
) -> Mirror:
    """Makes the twin that is fastest for so many environments; see :class:`Mirror`."""
    if isinstance(policy.action_dist, StateDependentNoiseDistribution):
        return ExploringMirror(policy, layers, num_envs)
    one_row = num_envs == 1 and layers[-1][0].out_features <= FEW_OUTPUTS
    return (RowMirror if one_row else Mirror)(policy, layers, num_envs, num_steps)


def mirrored_layers(policy: ActorCriticPolicy, space: spaces.Space) -> MirroredLayers | None:
    """Finds the actor's layers, if the policy is one that the mirror reproduces exactly.

    Args:
        policy: Any policy.
        space: Its observation space.

    Returns:
        The linear layers with their activations; None where an overridden method, a hook, another
        feature extractor or an unknown layer could make the policy act differently.
    """
    return mirrored(policy, actor_layers(policy, space))


def mirrored(policy: ActorCriticPolicy, layers: Layers | None) -> MirroredLayers | None:
    """The same from what :func:`agents.plain_networks.actor_layers` found."""
    if layers is None or type(policy.action_dist) not in FINISHES:
        return None
    explores = isinstance(policy.action_dist, StateDependentNoiseDistribution)
    if not can_be_mirrored(policy, layers) if explores else policy.squash_output:
        return None
    found: MirroredLayers = []
    for linear, activation in layers:
        if linear.weight.dtype != torch.float32 or type(activation) not in ACTIVATIONS:
            return None
        found.append((linear, ACTIVATIONS[type(activation)]))
    return found


def bounding(policy: ActorCriticPolicy, space: spaces.Space) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what makes of a policy's actions those that the environment takes.

    Args:
        policy: Which acts.
        space: The action space.

    Returns:
        A function of actions [B, ...].
    """
    if not isinstance(space, spaces.Box):
        return lambda actions: actions
    if policy.squash_output:
        return policy.unscale_action
    low, high = space.low, space.high
    return lambda actions: np.minimum(np.maximum(actions, low), high)  # a Gaussian is unbounded
