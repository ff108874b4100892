"""Letting a shared feature extractor learn from the critic without breaking the KL bound.

Whatever the critic's fit moves and the actor reads (shared weights, BatchNorm's running
statistics) changes the policy before the policy step begins. That change gets a part of the trust
region: after each piece of the fit the KL from the acting policy is measured, and when the budget
is spent the displacement is shortened to fit it, and stays. The policy step has the rest, because
its KL is measured from the acting policy too.
"""

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.distributions import Distribution

from agents.predictions import in_chunks, prediction
from agents.rollout import Observations
from npg import ranks
from npg.likelihoods import detached, joint_kl

BISECTIONS = 12


class KLBudget:
    """Watches what a critic's fit does to the policy.

    Args:
        policy: The policy.
        shared: Parameters that both the actor and the critic use.
        observations: The whole rollout's, [N, ...].
        behaviour: The acting policy's prediction on them.
        budget: KL that the fit may spend, nats.

    Attributes:
        spent: Whether the budget is used up: the shared weights must then stay where they are.
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        shared: list[Tensor],
        observations: Observations,
        behaviour: list[Distribution],
        budget: float,
    ) -> None:
        self.policy = policy
        self.observations = observations
        self.behaviour = behaviour
        self.budget = budget
        self.spent = False
        self.buffers = [b for b in policy.buffers() if b.is_floating_point()]
        self.tensors = [*shared, *self.buffers]
        self.start = [t.detach().clone() for t in self.tensors]

    def kl(self) -> float:
        """Mean KL(acting policy ‖ policy now) over the rollout, in evaluation mode."""
        if not self.tensors:
            return 0.0
        return mean_kl(self.policy, self.observations, self.behaviour)

    @torch.no_grad()
    def enforce(self) -> None:
        """Shortens the displacement to the budget, if it went beyond, and ends it there."""
        still = self.spent and not self.buffers  # running statistics move on, weights do not
        if not self.tensors or still or self.kl() <= self.budget:
            return
        self.spent = True
        end = [t.detach().clone() for t in self.tensors]
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            self._interpolate(end, middle)
            low, high = (middle, high) if self.kl() <= self.budget else (low, middle)
        self._interpolate(end, low)

    def _interpolate(self, end: list[Tensor], fraction: float) -> None:
        for tensor, first, last in zip(self.tensors, self.start, end, strict=True):
            tensor.copy_(torch.lerp(first, last, fraction) if fraction else first)


@torch.no_grad()
def behaviour_of(policy: ActorCriticPolicy, observations: Observations) -> list[Distribution]:
    """The policy's predictions on a rollout, detached, one per chunk."""
    return [
        detached(prediction(policy.get_distribution(piece))) for piece in in_chunks(observations)
    ]


@torch.no_grad()
def mean_kl(
    policy: ActorCriticPolicy, observations: Observations, behaviour: list[Distribution]
) -> float:
    """Mean KL(behaviour ‖ policy now) over a rollout, in evaluation mode, nats.

    Args:
        policy: The policy; its mode is left as it was.
        observations: The whole rollout's, [N, ...].
        behaviour: What :func:`behaviour_of` returned for them.

    Returns:
        The mean over all samples of all ranks.
    """
    training = policy.training
    policy.set_training_mode(False)
    total = count = 0.0
    for piece, old in zip(in_chunks(observations), behaviour, strict=True):
        divergence = joint_kl(old, prediction(policy.get_distribution(piece)))
        total += float(divergence.sum())
        count += len(divergence)
    policy.set_training_mode(training)
    return ranks.average(total / count)
