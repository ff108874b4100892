"""The natural policy gradient."""

import math
from typing import Any

import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from agents.critics import CriticKind
from agents.learning import learning
from agents.natural_policy import NaturalPolicyGradient
from npg.errors import ConfigurationError
from npg.optim import FisherInverse


class NPG(NaturalPolicyGradient):
    """TRPO without its line search: one KL-normalised natural gradient step per update.

    The quadratic model of the KL meets ``target_kl``; the true one is near it, above or below. Only
    where it is above ten times the target, as it can be near deterministic policies, the step is
    halved.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or a policy class.
        env: Gymnasium id, environment, or vector of environments; ``envs.make`` makes fast ones.
        learning_rate: Of the critic's Adam; a number or a schedule of the remaining progress.
        n_steps: Steps per environment and update.
        batch_size: Rows per minibatch of the Adam critic.
        gamma: Discount factor.
        cg_max_steps: Bound on the Fisher products per update.
        cg_damping: Added to the Fisher matrix' diagonal.
        n_critic_updates: Epochs of the Adam critic.
        gae_lambda: 0 trusts the critic, 1 the returns.
        use_sde: Whether to explore by gSDE.
        sde_sample_freq: Steps between new gSDE matrices; −1 is once per rollout.
        rollout_buffer_class: Another buffer class takes Stable-Baselines3's own rollout.
        rollout_buffer_kwargs: Its further arguments.
        normalize_advantage: Whether advantages get mean 0 and deviation 1.
        target_kl: Joint KL of the quadratic model, nats: the step is η F⁻¹g, η = √(2δ / gᵀF⁻¹g).
        step_size: Fixed multiplier η instead; ``target_kl`` is then not used.
        sub_sampling_factor: The Fisher products use one of so many samples, drawn at random.
        stats_window_size: Episodes in the logged means.
        tensorboard_log: Directory of TensorBoard logs.
        policy_kwargs: Arguments of the policy class.
        verbose: 0 silent, 1 a table per update.
        seed: Seeds everything.
        device: "cpu", "cuda", "auto".
        _init_setup_model: Whether to build the networks at once.
        curvature: "fisher-cg", "fisher-dense" for policies of a few thousand parameters, or "kfac":
            the direction from Kronecker factors, without conjugate gradient.
        critic: "adam" minibatches, or "gauss-newton" steps on the whole rollout.
        critic_steps: Gauss–Newton steps per update.

    Raises:
        ConfigurationError: If an argument cannot work; the message says which and why.

    Reference:
        Kakade, "A natural policy gradient", 2001; Rajeswaran et al., "Towards generalization and
        simplicity in continuous control", 2017, for the normalised step.
    """

    _mark = "step_size"

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 2048,
        batch_size: int = 128,
        gamma: float = 0.99,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float = 0.01,
        step_size: float | None = None,
        sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        curvature: FisherInverse = "fisher-cg",
        critic: CriticKind = "adam",
        critic_steps: int = 2,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            gamma=gamma,
            cg_max_steps=cg_max_steps,
            cg_damping=cg_damping,
            n_critic_updates=n_critic_updates,
            gae_lambda=gae_lambda,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            normalize_advantage=normalize_advantage,
            target_kl=target_kl,
            sub_sampling_factor=sub_sampling_factor,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            curvature=curvature,
            critic=critic,
            critic_steps=critic_steps,
        )
        self.step_size = step_size
        if _init_setup_model:
            self._setup_model()

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise ConfigurationError(f"step_size must be positive, got {self.step_size}")

    def _step_rule(self) -> dict[str, Any]:
        fixed = self.step_size is not None
        return {
            "lr": self.step_size if fixed else 1.0,
            "target_kl": None if fixed else self.target_kl,
            "damping": self.cg_damping,
            "line_search": False,
        }

    learn = learning("NPG", updates=1)
