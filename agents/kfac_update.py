"""The passes of one update of actor and critic by K-FAC, and the way back to before them."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Literal, NamedTuple

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.distributions import Distribution, Normal

from agents.acting_policy import ActingPolicy
from agents.batch_statistics import MovedOnce
from agents.critics import Snapshot
from agents.listening import KFACSnapshot, listening, statistics_due
from agents.losses import Objective
from agents.over_ranks import average_gradients
from agents.plain_actor_critic import PlainActorCritic
from agents.plain_heads import GaussianHead
from agents.plain_networks import action_distribution
from agents.predictions import prediction
from agents.rollout import Batch
from npg.curvature.kronecker.blocks import Call
from npg.likelihoods import Product
from npg.optim import KFAC

SharedCurvature = Literal["joint", "actor"]


class ActorLosses(NamedTuple):
    """Terms of the actor's loss.

    Attributes:
        policy: −mean A log π(a|s).
        entropy: −mean H(π(·|s)), or mean log π(a|s) where H has no formula.
        value: Mean (V − R)² where features are shared.
    """

    policy: Tensor
    entropy: Tensor
    value: Tensor | None


class _Evaluated(NamedTuple):
    action: Distribution
    log_probs: Tensor
    entropy: Tensor | None
    values: Tensor | None


class KFACUpdate:
    """One update; it begins in evaluation mode, as the policy acted.

    Args:
        policy: The policy.
        actor: Optimizer of what the actions depend on, and of all else if the curvature is joint.
        critic: Optimizer of what only the value depends on.
        samples: The rollout's.
        objective: The loss of these samples.
        by_hand: The policy's passes, where they can be written by hand.
        shared: Whose curvature the shared features get; None where none are shared.
        buffers: BatchNorm's.

    Attributes:
        acting: The policy that acted.
        near: What the actor's step moves and its policy reads, as it was.
        parameters: All that the optimizers move.
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        actor: KFAC,
        critic: KFAC | None,
        samples: Batch,
        objective: Objective,
        by_hand: PlainActorCritic | None,
        shared: SharedCurvature | None,
        buffers: Sequence[Tensor],
    ) -> None:
        self.policy, self.samples, self.by_hand, self.shared = policy, samples, by_hand, shared
        self.objective = objective
        self.actor, self.critic = actor, critic
        optimizers = [actor] if critic is None else [actor, critic]
        moved, *others = [optimizer.tensors() for optimizer in optimizers]
        self.parameters = [*moved, *chain(*others)]
        self.near = Snapshot([*moved, *(b for b in buffers if b.is_floating_point())])
        counters = (b for b in buffers if not b.is_floating_point())
        self._rest = Snapshot([*chain(*others), *counters])
        self._optimizers = [KFACSnapshot(optimizer) for optimizer in optimizers]
        self._statistics = MovedOnce(buffers)
        self.acting = ActingPolicy(policy, samples.observations, by_hand)

    def restore(self) -> None:
        """Takes everything back, bit for bit."""
        self.near.restore()
        self._rest.restore()
        for optimizer in self._optimizers:
            optimizer.restore()
        for parameter in self.parameters:
            parameter.grad = None

    def actor_pass(self) -> ActorLosses:
        """Leaves the actor's gradients, and its statistics where they are due.

        Returns:
            The losses.
        """
        samples, objective, optimizer = self.samples, self.objective, self.actor
        if self.by_hand is not None:
            if statistics_due(optimizer):
                with _distribution_kept(self.policy):
                    acted = action_distribution(self.policy, self.acting.output)
                    self._observe_plain(optimizer, prediction(acted), 0)
            actor = self.by_hand.actor_gradients(
                self.acting.output, samples.actions, objective.policy, objective.ent_coef
            )
            average_gradients(optimizer.tensors())
            return ActorLosses(actor.policy_loss, actor.entropy_loss, None)
        self.policy.set_training_mode(True)
        with listening(optimizer), _distribution_kept(self.policy):
            action, log_probs, entropy, values = self._evaluate()
            policy_loss, _ = objective.policy(log_probs)
            entropy_loss = log_probs.mean() if entropy is None else -entropy.mean()
            value_loss = None if values is None else objective.value(values)[0]
            joint = values is not None and self.shared == "joint"
            optimizer.observe(Product([action, _around(values)]) if joint else action)
        loss = policy_loss + objective.ent_coef * entropy_loss
        if value_loss is not None:
            loss = loss + objective.vf_coef * value_loss
            value_loss = value_loss.detach()
        self._differentiate(loss, optimizer)
        return ActorLosses(policy_loss.detach(), entropy_loss.detach(), value_loss)

    def critic_pass(self) -> Tensor:
        """Leaves the gradients of ½ mean (V − R)², and the critic's statistics where due.

        The curvature is that of a Gaussian of unit variance around the value, for which this is
        the negative log-likelihood.

        Returns:
            mean (V − R)².
        """
        samples, optimizer = self.samples, self.critic
        assert optimizer is not None
        if self.by_hand is not None:
            with torch.no_grad():
                values = self.by_hand.critic.forward(self.acting.features)
            if statistics_due(optimizer):
                self._observe_plain(optimizer, _around(values.flatten()), 1)
            loss = self.by_hand.critic_gradients(values, self.objective.value, 0.5)
            average_gradients(optimizer.tensors())
            return loss
        self.policy.set_training_mode(True)
        with listening(optimizer):
            values = self.policy.predict_values(samples.observations).flatten()
            optimizer.observe(_around(values))
        loss, _ = self.objective.value(values)
        self._differentiate(0.5 * loss, optimizer)
        return loss.detach()

    def _observe_plain(self, optimizer: KFAC, predicted: Distribution, which: int) -> None:
        """Takes statistics of plain layers, by hand as well: their last pass is at hand."""
        by_hand = self.by_hand
        assert by_hand is not None
        layers, network = by_hand.layers[which], (by_hand.actor, by_hand.critic)[which]

        def calls(scores: Sequence[Tensor]) -> list[Call]:
            # The second tensor of a Gaussian, as of the value, is no part of the output.
            gaussian = which == 1 or isinstance(by_hand.head, GaussianHead)
            parts = scores[:1] if gaussian else scores
            signals = network.signals(torch.cat([s.reshape(len(s), -1) for s in parts], 1))
            return [
                Call(linear, inputs, gradients=[signal])
                for (linear, _), inputs, signal in zip(layers, network.inputs, signals, strict=True)
            ]

        optimizer.fisher.observe_by_hand(predicted, calls)

    def _evaluate(self) -> _Evaluated:
        """The prediction, what its loss needs and, if features are shared, the values."""
        policy, (observations, actions, *_) = self.policy, self.samples
        if self.shared and _leaves_its_distribution(policy):  # the features in one pass
            values, log_probs, entropy = policy.evaluate_actions(observations, actions)
            return _Evaluated(prediction(policy.action_dist), log_probs, entropy, values.flatten())
        distribution = policy.get_distribution(observations)
        values = None
        if self.shared:
            self._statistics.settle()
            values = policy.predict_values(observations).flatten()
        log_probs, entropy = distribution.log_prob(actions), distribution.entropy()
        return _Evaluated(prediction(distribution), log_probs, entropy, values)

    def _differentiate(self, loss: Tensor, optimizer: KFAC) -> None:
        """Ends a pass: the other optimizer's gradients stay as they are."""
        optimizer.zero_grad()
        loss.backward(inputs=optimizer.tensors())
        average_gradients(optimizer.tensors())
        self._statistics.settle()


@contextmanager
def _distribution_kept(policy: ActorCriticPolicy) -> Iterator[None]:
    """Leaves the policy its last distribution: one with a graph could not be copied."""
    kept = policy.action_dist
    policy.action_dist = copy.copy(kept)
    try:
        yield
    finally:
        policy.action_dist = kept


def _leaves_its_distribution(policy: ActorCriticPolicy) -> bool:
    """Whether ``evaluate_actions`` is known to end with its distribution in ``action_dist``."""
    names = ("evaluate_actions", "_get_action_dist_from_latent")
    return all(getattr(type(policy), n) is getattr(ActorCriticPolicy, n) for n in names)


def _around(values: Tensor) -> Normal:
    return Normal(values, torch.ones_like(values), validate_args=False)
