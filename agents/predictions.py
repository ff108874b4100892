"""From Stable-Baselines3's action distributions to the engine's predictions, and their parts."""

from collections.abc import Iterator

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor
from torch import distributions as torch_distributions

from agents.plain_networks import Layers, output_of, plain_features
from agents.rollout import Observations
from npg.errors import ConfigurationError
from npg.likelihoods import Product, likelihood

CHUNK_BYTES = 64 * 2**20


def prediction(distribution: Distribution) -> torch_distributions.Distribution:
    """The joint distribution of a whole action, one sample per state.

    SB3's Gaussian and Bernoulli have a batch shape (N, d); read as N·d samples, their mean KL would
    be d times too small. Here the coordinates of one action are one sample.

    Args:
        distribution: What ``policy.get_distribution(observations)`` returned.

    Returns:
        Distribution of ``batch_shape`` (N,). A squashed Gaussian's is that before the squashing,
        which has the same KL.
    """
    inner = distribution.distribution
    if isinstance(distribution, MultiCategoricalDistribution):
        return Product(inner)
    if isinstance(distribution, BernoulliDistribution) or isinstance(
        inner, torch_distributions.Normal
    ):
        return torch_distributions.Independent(inner, 1, validate_args=False)
    return inner


def action_dimensions(space: spaces.Space) -> int:
    """Number of coordinates over which sb3-contrib's TRPO averages the KL divergence."""
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return int(np.prod(space.shape))
    return 1


def in_chunks(observations: Observations) -> Iterator[Observations]:
    """Cuts observations into pieces of at most 64 MiB, for forward passes without gradients."""
    columns = observations.values() if isinstance(observations, dict) else [observations]
    size = max(1, CHUNK_BYTES // max(1, sum(column[:1].numel() * 4 for column in columns)))
    if rows(observations) <= size:
        yield observations
        return
    for start in range(0, rows(observations), size):
        yield take(observations, slice(start, start + size))


def rows(observations: Observations) -> int:
    """Number of observations in a batch."""
    return len(
        next(iter(observations.values())) if isinstance(observations, dict) else observations
    )


def take(observations: Observations, indices: Tensor | slice) -> Observations:
    """Selects rows."""
    if isinstance(observations, dict):
        return {key: column[indices] for key, column in observations.items()}
    return observations[indices]


@torch.no_grad()
def values_of(
    policy: ActorCriticPolicy, observations: Observations, layers: Layers | None = None
) -> Tensor:
    """Values [N] of many observations.

    Args:
        policy: The policy.
        observations: [N, ...], or a dictionary of such.
        layers: The critic's, where it is known to be plain: torch's modules are then passed by.

    Returns:
        Values [N].
    """
    if layers is None:
        pieces = [policy.predict_values(piece) for piece in in_chunks(observations)]
    else:
        pieces = [
            output_of(layers, plain_features(policy, piece)) for piece in in_chunks(observations)
        ]
    return torch.cat([piece.flatten() for piece in pieces])


def stacked(rows: list, device: torch.device) -> Observations:
    """Puts single observations of one kind into a batch."""
    if isinstance(rows[0], dict):
        rows = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    else:
        rows = np.stack(rows)
    return obs_as_tensor(rows, device)


class Parts:
    """A policy's parameters, told apart by the graph: no name is looked at.

    Args:
        policy: Any actor-critic policy.
        space: Its observation space.

    Attributes:
        actor: Parameters that the action distribution depends on.
        critic: Parameters that the value depends on.
        shared: Those in both.

    Raises:
        ConfigurationError: If the distribution moves with no parameter, the value with none, or
            every actor parameter drives the value as well.
    """

    def __init__(self, policy: ActorCriticPolicy, space: spaces.Space) -> None:
        observations = _zeros(space, policy.device)
        parameters = [p for p in policy.parameters() if p.requires_grad]
        training = policy.training
        policy.set_training_mode(False)  # BatchNorm must not see these
        self.actor = _reached(_tensors(policy, observations), parameters)
        self.critic = _reached([policy.predict_values(observations)], parameters)
        with torch.no_grad():  # the policy keeps its last distribution; a graph cannot be copied
            policy.get_distribution(observations)
        policy.set_training_mode(training)
        names = {id(p): name for name, p in policy.named_parameters()}
        critic_ids = {id(p) for p in self.critic}
        self.shared = [p for p in self.actor if id(p) in critic_ids]
        if not self.actor:
            raise ConfigurationError(
                "the policy's action distribution depends on no trainable parameter"
            )
        if not self.critic:
            raise ConfigurationError("the policy's value depends on no trainable parameter")
        if len(self.shared) == len(self.actor):
            raise ConfigurationError(
                "the policy's actor cannot be told from its critic: every actor parameter "
                f"({', '.join(names[id(p)] for p in self.actor)}) drives the value too; give the "
                "actor a head of its own"
            )


def _zeros(space: spaces.Space, device: torch.device) -> Observations:
    if isinstance(space, spaces.Dict):
        return {key: _zeros(inner, device) for key, inner in space.spaces.items()}  # type: ignore[misc]
    shape = () if isinstance(space, spaces.Discrete) else space.shape
    return torch.as_tensor(np.zeros((2, *shape), dtype=space.dtype), device=device)


def _tensors(policy: ActorCriticPolicy, observations: Observations) -> list[Tensor]:
    with torch.enable_grad():
        joint = prediction(policy.get_distribution(observations))
        return [t for t in likelihood(joint).tensors(joint) if t.requires_grad]


def _reached(outputs: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    outputs = [output for output in outputs if output.requires_grad]
    if not outputs:
        return []
    total = sum(output.sum() for output in outputs)
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [p for p, g in zip(parameters, gradients, strict=True) if g is not None]
