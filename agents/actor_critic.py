"""The update of an on-policy actor-critic: one step on one loss, per rollout."""

import math
from numbers import Real
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import explained_variance
from torch import Tensor

from agents.arguments import (
    check_fractions,
    check_not_negative,
    check_samples_to_normalise,
    check_whole,
)
from agents.critics import Snapshot
from agents.losses import Loss, Objective, PolicyGradient, SquaredError
from agents.named_optimizers import protocol_of
from agents.on_policy import OnPolicy
from agents.over_ranks import average_gradients
from agents.plain_actor_critic import Losses
from agents.rollout import Batch, batch, standardised
from npg import ranks
from npg.errors import ConfigurationError


class ActorCritic(OnPolicy):
    """Base of the agents that step on L = policy + ``ent_coef`` entropy + ``vf_coef`` value loss.

    A subclass documents the arguments, makes its optimizers in ``_build_optimizers``, and may say
    in :meth:`_step` how the gradients become a step.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        *,
        normalize_advantage: bool,
        **base: Any,
    ) -> None:
        super().__init__(policy, env, **base)
        self.normalize_advantage = normalize_advantage

    def _check_settings(self) -> None:
        super()._check_settings()
        check_whole(n_steps=self.n_steps)
        check_fractions(gamma=self.gamma, gae_lambda=self.gae_lambda)
        check_not_negative(vf_coef=self.vf_coef)
        if not (isinstance(self.ent_coef, Real) and math.isfinite(self.ent_coef)):
            raise ConfigurationError(f"ent_coef must be a finite number, got {self.ent_coef!r}")
        if not (isinstance(self.max_grad_norm, Real) and self.max_grad_norm > 0):
            raise ConfigurationError(
                "max_grad_norm must be a positive number (infinity does not clip), got "
                f"{self.max_grad_norm!r}"
            )
        if not callable(self.learning_rate):
            check_not_negative(learning_rate=self.learning_rate)
        if self.normalize_advantage and self.env is not None:
            check_samples_to_normalise(self.n_steps, self.env.num_envs * ranks.count())

    def train(self) -> None:
        """Takes one step from the rollout.

        A rollout whose loss or gradient is not finite is skipped, counted in
        ``train/skipped_updates``.
        """
        self._update_learning_rate(self.policy.optimizer)
        samples = batch(self.rollout_buffer, self.action_space, self.device)
        self._prepare(len(samples.returns))
        objective = self._objective(samples)
        self._n_updates += 1
        losses, norm = self._gradients(samples, objective)
        if not math.isfinite(sum(losses, norm)):
            self.policy.optimizer.zero_grad()
            self._skip("its loss or gradient is not finite; scale the reward, or look for NaN")
            return
        self._step()
        self._log(losses)

    def _prepare(self, rows: int) -> None:
        """Called before the passes of an update, each of at most so many samples."""

    def _objective(self, samples: Batch) -> Objective:
        """The loss of some samples."""
        advantages = self._advantages(samples)
        if self.normalize_advantage:
            advantages = standardised(advantages, samples.share)
        return Objective(
            self._policy_loss(samples, advantages),
            self._value_loss(samples),
            self.ent_coef,
            self.vf_coef,
        )

    def _advantages(self, samples: Batch) -> Tensor:
        """What the policy's log-probabilities are weighted by, before any normalisation."""
        return samples.advantages

    def _policy_loss(self, samples: Batch, advantages: Tensor) -> Loss:
        return PolicyGradient(advantages)

    def _value_loss(self, samples: Batch) -> Loss:
        return SquaredError(samples.returns)

    def _gradients(self, samples: Batch, objective: Objective) -> tuple[Losses, float]:
        """Leaves the clipped gradients in ``grad``; returns the losses and the unclipped norm."""
        policy, optimizer = self.policy, self.policy.optimizer
        policy.set_training_mode(True)
        statistics = Snapshot(policy.buffers())
        values, log_probs, entropy = policy.evaluate_actions(samples.observations, samples.actions)
        policy_loss, _ = objective.policy(log_probs)
        value_loss, _ = objective.value(values.flatten())
        entropy_loss = log_probs.mean() if entropy is None else -entropy.mean()
        loss = policy_loss + objective.ent_coef * entropy_loss + objective.vf_coef * value_loss
        optimizer.zero_grad()
        loss.backward(create_graph=protocol_of(optimizer) == "hessian")
        policy.action_dist.distribution = None  # a policy that keeps its graph cannot be copied
        terms = torch.stack([policy_loss, value_loss, entropy_loss]).detach()
        average_gradients(policy.parameters(), samples.share, terms)
        norm = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), self.max_grad_norm))
        losses = Losses(*terms.tolist())
        if not math.isfinite(sum(losses, norm)):
            statistics.restore()  # BatchNorm's, from observations too large to square
        return losses, norm

    def _step(self) -> None:
        """Turns the gradients in ``grad`` into a step."""
        self.policy.optimizer.step()

    def _log(self, losses: Losses) -> None:
        self.logger.record("train/policy_loss", losses.policy)
        self._log_common(losses)

    def _log_common(self, losses: Losses) -> None:
        """Records what every agent of this kind does, by the same names."""
        buffer = self.rollout_buffer
        record = self.logger.record
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        record(
            "train/explained_variance",
            explained_variance(buffer.values.flatten(), buffer.returns.flatten()),
        )
        record("train/entropy_loss", losses.entropy)
        record("train/value_loss", losses.value)
        if hasattr(self.policy, "log_std"):
            record("train/std", torch.exp(self.policy.log_std).mean().item())
