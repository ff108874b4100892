"""ACKTR: actor-critic with K-FAC in a trust region."""

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from torch.distributions import Distribution, Normal

from agents.actor_critic import ActorCritic
from agents.arguments import check_fractions, check_not_negative, check_whole
from agents.critics import Snapshot
from agents.plain_actor_critic import Losses, PlainActorCritic, plain_actor_critic
from agents.predictions import prediction
from agents.rollout import Batch
from npg.errors import ConfigurationError
from npg.likelihoods import Product, detached, joint_kl
from npg.optim import KFAC
from npg.steps import KLAdaptive

# The rate may grow so far while the measured KL stays below its target.
LARGEST_STEP = 100.0
# Times that a step is shortened before it is taken back.
SHORTENINGS = 4


class ACKTR(ActorCritic):
    """A2C's objective, each step preconditioned by Kronecker-factored curvature.

    Actor and critic have a K-FAC optimizer each; the critic's Fisher matrix is that of a Gaussian
    of unit variance around the value. Where they share features, one optimizer has the joint
    Fisher matrix of both. No step is longer than a KL divergence of ``kl_clip`` by the
    curvature's model, and the actor's rate follows the divergence that was measured: it grows by
    half while that is below half of ``target_kl``, and shrinks by a third while it is above twice.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or a policy class.
        env: Gymnasium id, environment, or vector of environments; ``envs.make`` makes fast ones.
        learning_rate: First rate of the actor, and the critic's rate; a number or a schedule of
            the remaining progress. 1 is the natural gradient's own length.
        n_steps: Steps per environment and update. More make a better gradient and fewer updates.
        gamma: Discount factor.
        gae_lambda: 0 trusts the critic (low variance), 1 the returns (no bias).
        ent_coef: Weight of the entropy: higher explores longer.
        vf_coef: Weight of the value loss; it matters only where features are shared.
        target_kl: KL(old ‖ new) that an update of the actor should have, nats, averaged over the
            rollout. None keeps the rate.
        kl_clip: Longest step by the curvature's model, nats. None: twice ``target_kl``, or 0.0005
            without one.
        damping: Added to the curvature: high values turn towards the plain gradient.
        momentum: Share of the last step in the next.
        statistics_interval: Updates from one batch of statistics to the next.
        inverse_interval: Updates from one inversion to the next.
        statistics_decay: Weight of the past in the curvature's running means.
        critic_steps: Steps of the critic per rollout, on the whole of it.
        normalize_advantage: Whether advantages get mean 0 and deviation 1.
        use_sde: Whether to explore by gSDE.
        sde_sample_freq: Steps between new gSDE matrices; −1 is once per rollout.
        rollout_buffer_class: Another buffer class takes Stable-Baselines3's own, slower rollout.
        rollout_buffer_kwargs: Its further arguments.
        stats_window_size: Episodes in the logged means.
        tensorboard_log: Directory of TensorBoard logs.
        policy_kwargs: Arguments of the policy class.
        verbose: 0 silent, 1 a table per hundred updates.
        seed: Seeds everything.
        device: "cpu", "cuda", "auto".
        _init_setup_model: Whether to build the networks at once.

    Raises:
        ConfigurationError: If an argument cannot work; the message says which and why.

    Reference:
        Wu et al., "Scalable trust-region method for deep reinforcement learning using
        Kronecker-factored approximation", 2017.
    """

    _mark = "inverse_interval"

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 0.25,
        n_steps: int = 20,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        target_kl: float | None = 0.002,
        kl_clip: float | None = None,
        damping: float = 0.01,
        momentum: float = 0.0,
        statistics_interval: int = 5,
        inverse_interval: int = 10,
        statistics_decay: float = 0.95,
        critic_steps: int = 1,
        normalize_advantage: bool = True,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=math.inf,
            normalize_advantage=normalize_advantage,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
        )
        self.target_kl = target_kl
        self.kl_clip = kl_clip
        self.damping = damping
        self.momentum = momentum
        self.statistics_interval = statistics_interval
        self.inverse_interval = inverse_interval
        self.statistics_decay = statistics_decay
        self.critic_steps = critic_steps
        if _init_setup_model:
            self._setup_model()

    def _check_settings(self) -> None:
        super()._check_settings()
        check_whole(
            statistics_interval=self.statistics_interval,
            inverse_interval=self.inverse_interval,
            critic_steps=self.critic_steps,
        )
        check_fractions(momentum=self.momentum, statistics_decay=self.statistics_decay)
        positive = {"damping": self.damping, "target_kl": self.target_kl, "kl_clip": self.kl_clip}
        for name, value in positive.items():
            if value is not None:
                check_not_negative(**{name: value})
                if not value > 0:
                    raise ConfigurationError(f"{name} must be positive, got {value}")

    def _build_optimizers(self) -> None:
        self._by_hand: PlainActorCritic | None = None
        self.joint = bool(self.parts.shared)
        both = [*self.parts.actor, *self.parts.critic]
        self.actor_optimizer = self._kfac(dict.fromkeys(both) if self.joint else self.parts.actor)
        self.critic_optimizer = None if self.joint else self._kfac(self.parts.critic)
        self.step_size = self.lr_schedule(1.0)

    def _kfac(self, parameters: Any) -> KFAC:
        clip = self.kl_clip
        if clip is None:
            clip = 5e-4 if self.target_kl is None else 2 * self.target_kl
        return KFAC(
            self.policy,
            lr=self.lr_schedule(1.0),
            damping=self.damping,
            momentum=self.momentum,
            kl_clip=clip,
            statistics_interval=self.statistics_interval,
            inverse_interval=self.inverse_interval,
            statistics_decay=self.statistics_decay,
            seed=0 if self.seed is None else self.seed,
            parameters=list(parameters),
        )

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        found: dict[str, torch.optim.Optimizer] = {"actor": self.actor_optimizer}
        if self.critic_optimizer is not None:
            found["critic"] = self.critic_optimizer
        return found

    def _gradients(self, samples: Batch) -> tuple[Losses, float]:
        """Takes statistics along where they are due, through autograd; else by hand."""
        if not self.actor_optimizer.fisher.capture.active:
            self._by_hand = plain_actor_critic(self.policy, len(samples.returns), self._by_hand)
            if self._by_hand is not None:
                weight = self.vf_coef if self.joint else 0.5
                return self._by_hand.gradients(samples, self.ent_coef, weight, math.inf)
        policy = self.policy
        policy.set_training_mode(True)
        policy.zero_grad()
        distribution = policy.get_distribution(samples.observations)
        values = policy.predict_values(samples.observations).flatten()
        log_probs, entropy = distribution.log_prob(samples.actions), distribution.entropy()
        policy_loss = -(samples.advantages * log_probs).mean()
        entropy_loss = log_probs.mean() if entropy is None else -entropy.mean()
        value_loss = F.mse_loss(values, samples.returns)
        action = prediction(distribution)
        value = Normal(values, torch.ones_like(values), validate_args=False)
        if self.critic_optimizer is None:
            self.actor_optimizer.observe(Product([action, value]))
        else:
            self.actor_optimizer.observe(action)
            self.critic_optimizer.observe(value)
        weight = self.vf_coef if self.joint else 0.5
        (policy_loss + self.ent_coef * entropy_loss + weight * value_loss).backward()
        losses = torch.stack([policy_loss, value_loss, entropy_loss]).tolist()
        squares = [p.grad.square().sum() for p in policy.parameters() if p.grad is not None]
        return Losses(*losses), float(torch.stack(squares).sum().sqrt())

    def _step(self, samples: Batch) -> None:
        actor, critic = self.actor_optimizer, self.critic_optimizer
        rate = self.lr_schedule(self._current_progress_remaining)
        actor.param_groups[0]["lr"] = rate if self.target_kl is None else self.step_size
        start = Snapshot(actor.tensors())
        before = detached(self._prediction(samples))
        actor.step()
        self.kl = self._kl(before, samples)
        if self.target_kl is not None:
            self.step_size = KLAdaptive(self.target_kl, maximum=LARGEST_STEP).update(
                self.step_size, self.kl
            )
            self._stay_near(start, before, samples)
        if critic is not None:
            critic.param_groups[0]["lr"] = rate
            critic.step()
            for _ in range(self.critic_steps - 1):
                self._critic_step(critic, samples)

    @torch.no_grad()
    def _prediction(self, samples: Batch) -> Distribution:
        return prediction(self.policy.get_distribution(samples.observations))

    def _kl(self, before: Distribution, samples: Batch) -> float:
        return float(joint_kl(before, self._prediction(samples)).mean())

    def _stay_near(self, start: Snapshot, before: Distribution, samples: Batch) -> None:
        """Shortens a step that went further than twice the target, whatever the model said."""
        assert self.target_kl is not None
        for _ in range(SHORTENINGS):
            if self.kl <= 2 * self.target_kl:
                return
            fraction = math.sqrt(self.target_kl / self.kl) if math.isfinite(self.kl) else 0.0
            start.shorten(fraction)
            self.kl = self._kl(before, samples)
        if not self.kl <= 2 * self.target_kl:
            start.restore()
            self.kl = 0.0

    def _critic_step(self, critic: KFAC, samples: Batch) -> None:
        critic.zero_grad()
        values = self.policy.predict_values(samples.observations).flatten()
        critic.observe(Normal(values, torch.ones_like(values), validate_args=False))
        (0.5 * F.mse_loss(values, samples.returns)).backward()
        critic.step()

    def _log(self, losses: Losses) -> None:
        super()._log(losses)
        self.logger.record("train/kl_divergence", self.kl)
        self.logger.record("train/step_size", self.step_size)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_by_hand", "actor_optimizer", "critic_optimizer"]

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "ACKTR",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Trains; arguments and callbacks are Stable-Baselines3's.

        Args:
            total_timesteps: Environment steps, rounded up to whole rollouts.
            callback: Called at every step; may stop the training.
            log_interval: Updates between log lines.
            tb_log_name: Name of the run in TensorBoard.
            reset_num_timesteps: Whether counting starts at zero.
            progress_bar: Whether to draw one.

        Returns:
            The agent.
        """
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )
