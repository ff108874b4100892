"""The gradients of an actor-critic loss where actor and critic are plain networks.

With the forty samples of a usual rollout all of the time goes into calls, not into arithmetic: a
pass through torch's modules and autograd takes five times as long as one written by hand.
"""

import operator
from typing import NamedTuple

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from agents.backpropagation import (
    Backpropagation,
    can_be_written_by_hand,
    hooked,
    trained_parameters,
)
from agents.losses import Loss, Objective
from agents.plain_heads import HEADS, Differentiated, head_of
from agents.plain_networks import Layers, plain_features, plain_layers
from agents.rollout import Batch
from npg import ranks


class Losses(NamedTuple):
    """The terms of the loss, as numbers.

    Attributes:
        policy: Of log π(a|s).
        value: Of V(s).
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
        rows: Most samples per call.
    """

    def __init__(self, policy: ActorCriticPolicy, actor: Layers, critic: Layers, rows: int) -> None:
        self.policy, self.layers, self.rows = policy, (actor, critic), rows
        self.parameters = _parameters(policy, actor, critic)
        sizes = [p.numel() for p in self.parameters]
        self.flat = self.parameters[0].new_empty(sum(sizes))
        views = [
            piece.view_as(p)
            for piece, p in zip(self.flat.split(sizes), self.parameters, strict=True)
        ]
        first = len(trained_parameters(actor))
        second = first + len(trained_parameters(critic))
        self.actor = Backpropagation(actor, rows, views[:first])
        self.critic = Backpropagation(critic, rows, views[first:second])
        self.log_std_gradient = views[second:]  # of length 1 where there is one to train
        self.head = head_of(policy)
        ours = {id(p) for p in self.parameters}
        self.others = [p for p in policy.parameters() if id(p) not in ours]

    def fits(self, actor: Layers, critic: Layers, rows: int) -> bool:
        """Whether this is still what the constructor would make."""
        parameters = _parameters(self.policy, actor, critic)
        return (
            (actor, critic) == self.layers
            and rows == self.rows
            and len(parameters) == len(self.parameters)
            and all(map(operator.is_, parameters, self.parameters))
            and not any(map(hooked, parameters))
        )

    @torch.no_grad()
    def gradients(
        self, samples: Batch, objective: Objective, max_norm: float
    ) -> tuple[Losses, float]:
        """Leaves the clipped gradients in ``grad``.

        Args:
            samples: At most so many as the constructor was told.
            objective: The loss.
            max_norm: Length to which the gradient is clipped.

        Returns:
            The terms of the loss, and the norm before the clipping.
        """
        features = plain_features(self.policy, samples.observations)
        output, values = self.actor.forward(features), self.critic.forward(features)
        actor = self.actor_gradients(output, samples.actions, objective.policy, objective.ent_coef)
        value_loss = self.critic_gradients(values, objective.value, objective.vf_coef)
        for parameter in self.others:
            parameter.grad = None
        terms = torch.stack([actor.policy_loss, value_loss, actor.entropy_loss])
        ranks.average_([self.flat, terms], samples.share)
        norm = float(torch.linalg.vector_norm(self.flat))
        if norm > max_norm:
            self.flat.mul_(max_norm / (norm + 1e-6))
        return Losses(*terms.tolist()), norm

    @torch.no_grad()
    def actor_gradients(
        self, output: Tensor, actions: Tensor, loss: Loss, ent_coef: float
    ) -> Differentiated:
        """Leaves the gradients of the actor's loss in its ``grad``.

        Args:
            output: Of the actor's last forward pass, [N, K].
            actions: [N, A], or [N] for a Discrete space.
            loss: Of log π(a|s).
            ent_coef: Weight of the entropy loss.

        Returns:
            The losses; the gradients in it are used up.
        """
        actor = self.head.differentiate(output, actions, loss, ent_coef)
        self.actor.backward(actor.output)
        for gradient in self.log_std_gradient:
            self.policy.log_std.grad = gradient.copy_(actor.log_std)
        return actor

    @torch.no_grad()
    def critic_gradients(self, values: Tensor, loss: Loss, vf_coef: float) -> Tensor:
        """Leaves the gradients of ``vf_coef`` times the value loss in the critic's ``grad``.

        Args:
            values: V, of the critic's last forward pass, [N, 1].
            loss: Of V.
            vf_coef: Weight of the value loss.

        Returns:
            The value loss.
        """
        value_loss, slope = loss(values.view(-1))
        self.critic.backward(slope.mul_(vf_coef).unsqueeze(1))
        return value_loss


def _parameters(policy: ActorCriticPolicy, actor: Layers, critic: Layers) -> list[Tensor]:
    """What is trained: the actor's, the critic's, and the log standard deviation."""
    log_std = getattr(policy, "log_std", None)
    head = [log_std] if log_std is not None and log_std.requires_grad else []
    return [*trained_parameters(actor), *trained_parameters(critic), *head]


def plain_actor_critic(
    policy: ActorCriticPolicy, rows: int, last: PlainActorCritic | None = None
) -> PlainActorCritic | None:
    """Finds out whether the gradients of a policy can be written by hand.

    Args:
        policy: Any policy.
        rows: Most samples per call.
        last: What the last call returned, to be used again where nothing has changed.

    Returns:
        The gradients, or None where autograd has to make them.
    """
    actor, critic = plain_layers(policy, policy.observation_space)
    if actor is None or critic is None or type(policy.action_dist) not in HEADS:
        return None
    if last is not None and last.policy is policy and last.fits(actor, critic, rows):
        return last
    log_std = getattr(policy, "log_std", None)
    if not can_be_written_by_hand(actor, critic) or (log_std is not None and hooked(log_std)):
        return None
    return PlainActorCritic(policy, actor, critic, rows)
