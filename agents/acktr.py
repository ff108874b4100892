"""ACKTR: actor-critic with K-FAC in a trust region."""

from typing import Any

import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from agents.kfac_actor_critic import KFACActorCritic
from agents.kfac_update import SharedCurvature
from agents.learning import learning


class ACKTR(KFACActorCritic):
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
            target_kl=target_kl,
            kl_clip=kl_clip,
            damping=damping,
            momentum=momentum,
            statistics_interval=statistics_interval,
            inverse_interval=inverse_interval,
            statistics_decay=statistics_decay,
            critic_steps=critic_steps,
            shared_curvature=shared_curvature,
        )
        if _init_setup_model:
            self._setup_model()

    learn = learning("ACKTR", updates=100)
