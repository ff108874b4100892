"""An actor-critic whose steps are K-FAC's, in a trust region that is measured."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor

from agents.actor_critic import ActorCritic
from agents.arguments import check_below_one, check_not_negative, check_positive, check_whole
from agents.kfac_update import KFACUpdate, SharedCurvature
from agents.listening import quiet, statistics_due
from agents.losses import Objective
from agents.plain_actor_critic import Losses, PlainActorCritic, plain_actor_critic
from agents.rollout import Batch
from npg import ranks
from npg.errors import ConfigurationError
from npg.optim import KFAC
from npg.steps import KLAdaptive

# The rate may grow so far while the measured KL stays below its target.
LARGEST_STEP = 100.0


class KFACActorCritic(ActorCritic):
    """Base of ACKTR: the optimizers, and what an update does with them.

    A subclass documents the arguments.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        *,
        target_kl: float | None,
        kl_clip: float | None,
        damping: float,
        momentum: float,
        statistics_interval: int,
        inverse_interval: int,
        statistics_decay: float,
        critic_steps: int,
        shared_curvature: SharedCurvature,
        **base: Any,
    ) -> None:
        super().__init__(policy, env, max_grad_norm=math.inf, **base)
        self.target_kl = target_kl
        self.kl_clip = kl_clip
        self.damping = damping
        self.momentum = momentum
        self.statistics_interval = statistics_interval
        self.inverse_interval = inverse_interval
        self.statistics_decay = statistics_decay
        self.critic_steps = critic_steps
        self.shared_curvature = shared_curvature

    def _check_settings(self) -> None:
        super()._check_settings()
        self._check_values()

    def _check_values(self) -> None:
        """Refuses what callbacks may set later, too."""
        check_whole(
            statistics_interval=self.statistics_interval,
            inverse_interval=self.inverse_interval,
            critic_steps=self.critic_steps,
        )
        check_below_one(momentum=self.momentum, statistics_decay=self.statistics_decay)
        optional = {"target_kl": self.target_kl, "kl_clip": self.kl_clip}
        given = {name: value for name, value in optional.items() if value is not None}
        check_positive(damping=self.damping, **given)
        if self.shared_curvature not in ("joint", "actor"):
            raise ConfigurationError(
                f'shared_curvature must be "joint" or "actor", got {self.shared_curvature!r}'
            )

    def _check_critic_steps(self) -> None:
        if self.critic_optimizer is None and self.critic_steps > 1:
            raise ConfigurationError(
                f"critic_steps={self.critic_steps} would move features that the actor reads: with "
                'shared features take critic_steps=1, or shared_curvature="actor"'
            )

    def _build_optimizers(self) -> None:
        self._by_hand: PlainActorCritic | None = None
        self._update: KFACUpdate | None = None
        actor, critic, shared = self.parts.actor, self.parts.critic, self.parts.shared
        self._shared = self.shared_curvature if shared else None
        both = dict.fromkeys([*actor, *critic])
        self.actor_optimizer = self._kfac(both if self._shared == "joint" else actor, 0)
        known = {id(p) for p in self.actor_optimizer.tensors()}
        own = [p for p in critic if id(p) not in known]
        self.critic_optimizer = self._kfac(own, 1) if own else None
        self._check_critic_steps()
        normalises = any(getattr(m, "track_running_stats", False) for m in self.policy.modules())
        self._buffers = list(self.policy.buffers()) if normalises else []

    def _kfac(self, parameters: Iterable[Tensor], offset: int) -> KFAC:
        optimizer = KFAC(
            self.policy,
            statistics_interval=self.statistics_interval,
            inverse_interval=self.inverse_interval,
            statistics_decay=self.statistics_decay,
            seed=(0 if self.seed is None else self.seed) + offset + 2 * ranks.index(),
            parameters=list(parameters),
            damping=self.damping,
            momentum=float(self.momentum),
            distributed=ranks.count() > 1,
        )
        optimizer.extra["step_factor"] = 1.0
        quiet(optimizer)
        return optimizer

    def _optimizers(self) -> dict[str, KFAC]:
        optimizers = {"actor": self.actor_optimizer, "critic": self.critic_optimizer}
        return {name: each for name, each in optimizers.items() if each is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a copy, whose policy must have no hooks either."""
        self.__dict__.update(state)
        if "actor_optimizer" in state:
            for optimizer in self._optimizers().values():
                quiet(optimizer)

    @property
    def step_size(self) -> float:
        """The actor's rate: what the schedule says, times what the measured KL made of it."""
        factor = self.actor_optimizer.extra["step_factor"] if self.target_kl is not None else 1.0
        return self.lr_schedule(self._current_progress_remaining) * factor

    def _follow_attributes(self) -> None:
        """Hands on what callbacks and load() may have changed since the last update.

        ``shared_curvature`` is not among it: it chooses what was built.
        """
        self._check_values()
        self._check_critic_steps()
        rate = self.lr_schedule(self._current_progress_remaining)
        check_not_negative(learning_rate=rate)
        clip = self.kl_clip
        if clip is None:
            clip = 5e-4 if self.target_kl is None else 2 * self.target_kl
        for name, optimizer in self._optimizers().items():
            optimizer.statistics_interval = self.statistics_interval
            optimizer.inverse_interval = self.inverse_interval
            optimizer.statistics_decay = self.statistics_decay
            optimizer.param_groups[0].update(
                lr=self.step_size if name == "actor" else rate,
                damping=self.damping,
                momentum=float(self.momentum),
                kl_clip=clip,
            )
            optimizer.fisher.capture.active = statistics_due(optimizer)

    def train(self) -> None:
        """Takes one step of the actor, and those of the critic, from the rollout.

        An exception leaves policy, optimizers and step size as they were. A rollout whose loss or
        gradient is not finite is skipped, counted in ``train/skipped_updates``.
        """
        self._follow_attributes()
        try:
            super().train()
        except BaseException:  # no memory, no inverse, Ctrl-C: all of the update or none
            if self._update is not None:
                self._update.restore()
            raise
        finally:
            self._update = None
            if self.policy.training:
                self.policy.set_training_mode(False)

    def _gradients(self, samples: Batch, objective: Objective) -> tuple[Losses, float]:
        policy = self.policy
        if policy.training:  # it acted in the other mode, and the divergence is from there
            policy.set_training_mode(False)
        self._by_hand = plain_actor_critic(policy, len(samples.returns), self._by_hand)
        update = self._update = KFACUpdate(
            policy,
            self.actor_optimizer,
            self.critic_optimizer,
            samples,
            objective,
            self._by_hand,
            self._shared,
            self._buffers,
        )
        losses = update.actor_pass()
        value_loss = losses.value if self.critic_optimizer is None else update.critic_pass()
        gradients = [p.grad for p in update.parameters if p.grad is not None]
        terms = [losses.policy, value_loss, losses.entropy, *torch._foreach_norm(gradients)]
        policy_loss, value_loss, entropy_loss, *norms = ranks.averages(torch.stack(terms).tolist())
        if not math.isfinite(policy_loss + value_loss + entropy_loss + sum(norms)):
            update.restore()
        return Losses(policy_loss, value_loss, entropy_loss), math.hypot(*norms)

    def _step(self) -> None:
        actor, critic, update = self.actor_optimizer, self.critic_optimizer, self._update
        assert update is not None
        actor.step()
        self._kl = update.acting.kl()
        if self.target_kl is not None:
            rate = self.lr_schedule(self._current_progress_remaining)
            if rate > 0:
                adapted = KLAdaptive(self.target_kl, maximum=max(LARGEST_STEP, rate))
                actor.extra["step_factor"] = adapted.update(self.step_size, self._kl) / rate
            self._kl, fraction = update.acting.stay_near(update.near, self._kl, self.target_kl)
            velocity = [state["velocity"] for state in actor.state.values() if state]
            if fraction < 1 and velocity:  # momentum goes on with the step that was made
                torch._foreach_mul_(velocity, fraction)
        for i in range(self.critic_steps if critic is not None else 0):
            if i > 0:
                update.critic_pass()
            critic.step()

    def _log(self, losses: Losses) -> None:
        super()._log(losses)
        self.logger.record("train/kl_divergence", self._kl)
        self.logger.record("train/step_size", self.actor_optimizer.param_groups[0]["lr"])

    def _excluded_save_params(self) -> list[str]:
        own = ["_by_hand", "_update", "_shared", "_buffers", "actor_optimizer", "critic_optimizer"]
        return [*super()._excluded_save_params(), *own]
