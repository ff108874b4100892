"""ACKTR: actor-critic with K-FAC in a trust region."""

import math
from collections.abc import Iterable
from typing import Any, Self

import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from torch import Tensor

from agents.actor_critic import ActorCritic
from agents.arguments import check_below_one, check_not_negative, check_positive, check_whole
from agents.kfac_update import KFACUpdate, SharedCurvature
from agents.listening import quiet, statistics_due
from agents.plain_actor_critic import Losses, PlainActorCritic, plain_actor_critic
from agents.rollout import Batch
from npg.errors import ConfigurationError
from npg.optim import KFAC
from npg.steps import KLAdaptive

# The rate may grow so far while the measured KL stays below its target.
LARGEST_STEP = 100.0
# K-FAC takes no rate of zero, where a schedule may end.
SMALLEST_RATE = 1e-30


class ACKTR(ActorCritic):
    """A2C's objective, each step preconditioned by Kronecker-factored curvature.

    Actor and critic have a K-FAC optimizer each; the critic's Fisher matrix is that of a Gaussian
    of unit variance around the value. No step is longer than a KL divergence of ``kl_clip`` by the
    curvature's model. What the model does not see is measured: after each update the actor's rate
    grows by half if the divergence was below half of ``target_kl``, and shrinks by a third if it
    was above twice; a step above twice is shortened, at worst to nothing.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or a policy class.
        env: Gymnasium id, environment, or vector of environments; ``envs.make`` makes fast ones.
        learning_rate: The critic's rate and, times a factor that starts at 1 and follows the
            measured divergence, the actor's; a number or a schedule of the remaining progress. 1
            is the natural gradient's own length.
        n_steps: Steps per environment and update. More make a better gradient and fewer updates.
        gamma: Discount factor.
        gae_lambda: 0 trusts the critic (low variance), 1 the returns (no bias).
        ent_coef: Weight of the entropy: higher explores longer.
        vf_coef: Weight of the value loss in what the actor's optimizer steps on where features are
            shared; 0.5 fits the curvature. A critic of its own has a loss of its own.
        target_kl: KL(old ‖ new) that an update of the actor should have, nats, averaged over the
            rollout. None leaves the rate to ``learning_rate`` and bounds nothing by measurement.
        kl_clip: Longest step by the curvature's model, nats, of actor and critic alike. None: twice
            ``target_kl``, or 0.0005 without one.
        damping: Added to the curvature: high values turn towards the plain gradient.
        momentum: Share of the last step in the next, below 1.
        statistics_interval: Steps from one batch of statistics to the next. The critic takes
            ``critic_steps`` steps per update, the actor one.
        inverse_interval: Steps from one inversion to the next.
        statistics_decay: Weight of the past in the curvature's running means, below 1.
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
        shared_curvature: Whose Fisher matrix the features have that actor and critic share.
            "joint" is that of action and value together: one step then moves everything, and
            directions that only the value sees are known to be curved. "actor" is the policy's
            alone: the clip counts nothing but the policy's divergence, the critic's head takes
            steps of its own, and in those directions damping alone holds the features.

    Raises:
        ConfigurationError: If an argument cannot work; the message says which and why.

    Reference:
        Wu et al., "Scalable trust-region method for deep reinforcement learning using
        Kronecker-factored approximation", 2017. The adapted rate is that of the code published
        with it.
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
        shared_curvature: SharedCurvature = "joint",
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
        self.shared_curvature = shared_curvature
        if _init_setup_model:
            self._setup_model()

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
            seed=(0 if self.seed is None else self.seed) + offset,
            parameters=list(parameters),
            damping=self.damping,
            momentum=float(self.momentum),
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
                lr=max(self.step_size if name == "actor" else rate, SMALLEST_RATE),
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

    def _gradients(self, samples: Batch) -> tuple[Losses, float]:
        policy = self.policy
        if policy.training:  # it acted in the other mode, and the divergence is from there
            policy.set_training_mode(False)
        self._by_hand = plain_actor_critic(policy, len(samples.returns), self._by_hand)
        update = self._update = KFACUpdate(
            policy,
            self.actor_optimizer,
            self.critic_optimizer,
            samples,
            self._by_hand,
            self._shared,
            self._buffers,
        )
        losses = update.actor_pass(self.ent_coef, self.vf_coef)
        value_loss = losses.value if self.critic_optimizer is None else update.critic_pass()
        gradients = [p.grad for p in update.parameters if p.grad is not None]
        terms = [losses.policy, value_loss, losses.entropy, *torch._foreach_norm(gradients)]
        policy_loss, value_loss, entropy_loss, *norms = torch.stack(terms).tolist()
        if not math.isfinite(policy_loss + value_loss + entropy_loss + sum(norms)):
            update.restore()
        return Losses(policy_loss, value_loss, entropy_loss), math.hypot(*norms)

    def _step(self, samples: Batch) -> None:
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
            if fraction < 1:  # momentum goes on with the step that was made
                torch._foreach_mul_([actor.state[p]["velocity"] for p in actor.state], fraction)
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
