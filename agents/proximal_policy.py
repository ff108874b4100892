"""Epochs of minibatch steps on the clipped surrogate."""

import math
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule
from torch import Tensor

from agents.arguments import (
    BatchOfOneError,
    check_clip_range,
    check_positive,
    check_whole,
    warn_of_truncated_batches,
)
from agents.first_order import FirstOrder
from agents.losses import ClippedSquaredError, ClippedSurrogate, Loss
from agents.minibatches import Minibatches
from agents.plain_actor_critic import Losses
from agents.plain_steps import fuse
from agents.rollout import Batch
from npg import ranks

# A minibatch whose KL estimate is above so many times ``target_kl`` ends the update.
STOP_ABOVE = 1.5


class ProximalPolicy(FirstOrder):
    """Base of PPO: the losses, and what an update does with them.

    A subclass documents the arguments.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        *,
        batch_size: int,
        n_epochs: int,
        clip_range: float | Schedule,
        clip_range_vf: float | Schedule | None,
        target_kl: float | None,
        **base: Any,
    ) -> None:
        super().__init__(policy, env, **base)
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.target_kl = target_kl

    def _check_settings(self) -> None:
        super()._check_settings()
        check_whole(batch_size=self.batch_size, n_epochs=self.n_epochs)
        check_clip_range(clip_range=self.clip_range)
        if self.clip_range_vf is not None:
            check_clip_range(clip_range_vf=self.clip_range_vf)
        if self.target_kl is not None:
            check_positive(target_kl=self.target_kl)
        if self.normalize_advantage and self.batch_size < 2:
            raise BatchOfOneError(
                "`batch_size` must be greater than 1 to normalise the advantage, got "
                f"{self.batch_size}; or give normalize_advantage=False"
            )
        if self.env is not None:
            environments = self.env.num_envs * ranks.count()
            warn_of_truncated_batches(self.batch_size, self.n_steps, environments)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)

    def _build_optimizers(self) -> None:
        super()._build_optimizers()
        fuse(self.policy.optimizer)

    def _now(self, schedule: FloatSchedule) -> float:
        """What a schedule says at this moment of the training."""
        return schedule(self._current_progress_remaining)

    def _policy_loss(self, samples: Batch, advantages: Tensor) -> Loss:
        return ClippedSurrogate(advantages, samples.log_probs, self._now(self.clip_range))

    def _value_loss(self, samples: Batch) -> Loss:
        if self.clip_range_vf is None:
            return super()._value_loss(samples)
        return ClippedSquaredError(samples.returns, samples.values, self._now(self.clip_range_vf))

    def train(self) -> None:
        """Takes epochs of minibatch steps from the rollout.

        A minibatch whose loss or gradient is not finite is skipped, counted in
        ``train/skipped_updates``.
        """
        self._update_learning_rate(self.policy.optimizer)
        self._prepare(self.batch_size)
        minibatches = Minibatches(
            self.rollout_buffer, self.action_space, self.device, self.batch_size
        )
        epochs: list[list[_Pass]] = []
        for epoch in range(self.n_epochs):
            epochs.append([])
            for samples in minibatches.epoch():
                measured = self._pass(samples)
                if measured is None:
                    continue
                epochs[-1].append(measured)
                if self._too_far(measured):
                    break
                self._step()
            self._n_updates += 1
            if epochs[-1] and self._too_far(epochs[-1][-1]):
                if self.verbose >= 1 and ranks.index() == 0:
                    kl = epochs[-1][-1].kl
                    print(f"Early stopping at step {epoch} due to reaching max kl: {kl:.2f}")
                break
        if any(epochs):
            self._log_epochs([epoch for epoch in epochs if epoch])

    def _pass(self, samples: Batch) -> "_Pass | None":
        """Leaves a minibatch's gradients in ``grad``, or returns None where they are no numbers."""
        objective = self._objective(samples)
        losses, norm = self._gradients(samples, objective)
        if not math.isfinite(sum(losses, norm)):
            self.policy.optimizer.zero_grad()
            self._skip("a loss or gradient is not finite; scale the reward, or look for NaN")
            return None
        surrogate = objective.policy
        assert isinstance(surrogate, ClippedSurrogate)
        measured = [float(surrogate.approx_kl), float(surrogate.clip_fraction)]
        return _Pass(*losses, *ranks.averages(measured, samples.share))

    def _too_far(self, measured: "_Pass") -> bool:
        return self.target_kl is not None and measured.kl > STOP_ABOVE * self.target_kl

    def _log_epochs(self, epochs: "list[list[_Pass]]") -> None:
        """Records means over the update, but for the KL estimate: over its last epoch."""
        mean = _Pass(*np.mean([measured for epoch in epochs for measured in epoch], axis=0))
        last = epochs[-1][-1]
        self._log_common(Losses(mean.policy, mean.value, mean.entropy))
        record = self.logger.record
        record("train/policy_gradient_loss", mean.policy)
        record("train/clip_fraction", mean.clip_fraction)
        record("train/approx_kl", np.mean([measured.kl for measured in epochs[-1]]))
        loss = last.policy + self.ent_coef * last.entropy + self.vf_coef * last.value
        record("train/loss", loss)
        record("train/clip_range", self._now(self.clip_range))
        if self.clip_range_vf is not None:
            record("train/clip_range_vf", self._now(self.clip_range_vf))


class _Pass(NamedTuple):
    """What the pass of a minibatch measured."""

    policy: float
    value: float
    entropy: float
    kl: float
    clip_fraction: float
