"""How far an update has moved the policy from the one that acted."""

import math

import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from agents.critics import Snapshot
from agents.plain_actor_critic import PlainActorCritic
from agents.plain_networks import plain_features
from agents.rollout import Observations
from agents.shared_features import behaviour_of, mean_kl
from npg import ranks

# Times that a step is shortened before it is taken back.
SHORTENINGS = 4


class ActingPolicy:
    """KL(acting policy ‖ policy now), nats, averaged over the observations of a rollout.

    Args:
        policy: As it acted, in evaluation mode.
        observations: The rollout's, [N, ...].
        by_hand: The policy's passes, where they can be written by hand.

    Attributes:
        features: What plain layers start from, where the passes are by hand.
        output: Of the actor's forward pass, until :meth:`kl` makes the next.
    """

    @torch.no_grad()
    def __init__(
        self,
        policy: ActorCriticPolicy,
        observations: Observations,
        by_hand: PlainActorCritic | None,
    ) -> None:
        self.policy = policy
        self.observations = observations
        self.by_hand = by_hand
        if by_hand is None:
            self.behaviour = behaviour_of(policy, observations)
        else:
            self.features = plain_features(policy, observations)
            self.output = by_hand.actor.forward(self.features)
            self.behaviour = by_hand.head.reference(self.output)

    @torch.no_grad()
    def kl(self) -> float:
        """Measures it now."""
        if self.by_hand is None:
            return mean_kl(self.policy, self.observations, self.behaviour)
        output = self.by_hand.actor.forward(self.features)
        return ranks.average(float(self.by_hand.head.kl(self.behaviour, output)))

    def stay_near(self, start: Snapshot, kl: float, target_kl: float) -> tuple[float, float]:
        """Shortens a step that went further than twice the target, whatever its model said.

        The divergence grows with the square of a step's length, nearly: one shortening is the rule.
        A step that is still too long after four of them is taken back, bit for bit.

        Args:
            start: Everything that the step moved and the policy reads, as it was before.
            kl: What :meth:`kl` says of the whole step.
            target_kl: Half of what is allowed, nats.

        Returns:
            The divergence of what is left of the step, and its fraction of the whole.
        """
        fraction = 1.0
        for _ in range(SHORTENINGS):
            if kl <= 2 * target_kl:
                return kl, fraction
            if not math.isfinite(kl):
                break
            shorter = math.sqrt(target_kl / kl)
            start.shorten(shorter)
            fraction *= shorter
            kl = self.kl()
        if kl <= 2 * target_kl:
            return kl, fraction
        start.restore()
        return 0.0, 0.0
