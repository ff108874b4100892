"""The gradients of an actor-critic loss where actor and critic are plain networks.

With the forty samples of a usual rollout all of the time goes into calls, not into arithmetic: a
pass through torch's modules and autograd takes five times as long as one written by hand.
"""

from typing import NamedTuple

import torch
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from agents.backpropagation import (
    Backpropagation,
    can_be_written_by_hand,
    hooked,
    trained_parameters,
)
from agents.plain_networks import Layers, action_distribution, plain_features, plain_layers
from agents.rollout import Batch

_DISTRIBUTIONS = {
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
}


class Losses(NamedTuple):
    """The terms of the loss, as numbers.

    Attributes:
        policy: −mean A log π(a|s).
        value: Mean (V − R)².
        entropy: −mean H(π(·|s)), or mean log π(a|s) where H has no formula.
    """

    policy: float
    value: float
    entropy: float


class PlainActorCritic:
    """Losses and gradients of a policy for which :func:`plain_actor_critic` found the layers.

    The gradients lie in one vector, which the next call overwrites: what keeps one has to copy it.

    Args:
        policy: The policy.
        actor: Its actor's layers.
        critic: Its critic's.
        rows: Samples per call.
    """

    def __init__(self, policy: ActorCriticPolicy, actor: Layers, critic: Layers, rows: int) -> None:
        self.policy = policy
        log_std = getattr(policy, "log_std", None)
        self.log_std = log_std if log_std is not None and log_std.requires_grad else None
        owned = [trained_parameters(actor), trained_parameters(critic)]
        head = [] if self.log_std is None else [self.log_std]
        parameters = [*owned[0], *owned[1], *head]
        self.flat = parameters[0].new_empty(sum(p.numel() for p in parameters))
        pieces = self.flat.split([p.numel() for p in parameters])
        views = [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]
        first, second = len(owned[0]), len(owned[0]) + len(owned[1])
        self.actor = Backpropagation(actor, rows, views[:first])
        self.critic = Backpropagation(critic, rows, views[first:second])
        self.log_std_gradient = views[second:]
        ours = {id(p) for p in parameters}
        self.others = [p for p in policy.parameters() if id(p) not in ours]

    def gradients(
        self, samples: Batch, ent_coef: float, vf_coef: float, max_norm: float
    ) -> tuple[Losses, float]:
        """Leaves the clipped gradients in ``grad``.

        Args:
            samples: The rollout's.
            ent_coef: Weight of the entropy loss.
            vf_coef: Weight of the value loss.
            max_norm: Length to which the gradient is clipped.

        Returns:
            The terms of the loss, and the norm before the clipping.
        """
        with torch.no_grad():
            features = plain_features(self.policy, samples.observations)
            output = self.actor.forward(features)
            policy_loss, entropy_loss = self._differentiate_actor(output, samples, ent_coef)
            residual = self.critic.forward(features).sub_(samples.returns.unsqueeze(1))
            flat = residual.view(-1)
            value_loss = torch.dot(flat, flat) / len(flat)
            self.critic.backward(residual.mul_(2 * vf_coef / len(flat)))
            for parameter in self.others:
                parameter.grad = None
            norm = float(torch.linalg.vector_norm(self.flat))
            if norm > max_norm:
                self.flat.mul_(max_norm / (norm + 1e-6))
        return Losses(float(policy_loss), float(value_loss), float(entropy_loss)), norm

    def _differentiate_actor(
        self, output: Tensor, samples: Batch, ent_coef: float
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            output = output.detach().requires_grad_()
            distribution = action_distribution(self.policy, output)
            policy_loss = -(samples.advantages * distribution.log_prob(samples.actions)).mean()
            entropy_loss = -distribution.entropy().mean()
            loss = policy_loss + ent_coef * entropy_loss
            wanted = [output] if self.log_std is None else [output, self.log_std]
            delta, *head = torch.autograd.grad(loss, wanted)
        self.actor.backward(delta)
        for gradient, memory in zip(head, self.log_std_gradient, strict=True):
            self.log_std.grad = memory.copy_(gradient)
        return policy_loss.detach(), entropy_loss.detach()


def plain_actor_critic(
    policy: ActorCriticPolicy, rows: int, last: PlainActorCritic | None = None
) -> PlainActorCritic | None:
    """Finds out whether the gradients of a policy can be written by hand.

    Args:
        policy: Any policy.
        rows: Samples of the rollout.
        last: What the last call returned: taken again if it still fits.

    Returns:
        The gradients, or None where autograd has to make them.
    """
    actor, critic = plain_layers(policy, policy.observation_space)
    if actor is None or critic is None or type(policy.action_dist) not in _DISTRIBUTIONS:
        return None
    log_std = getattr(policy, "log_std", None)
    if not can_be_written_by_hand(actor, critic) or (log_std is not None and hooked(log_std)):
        return None
    return PlainActorCritic(policy, actor, critic, rows)
