"""Trust region policy optimisation."""

import warnings
from collections.abc import Collection
from typing import Any, Literal

import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from agents.arguments import check_fractions
from agents.critics import CriticKind
from agents.learning import learning
from agents.natural_policy import NaturalPolicyGradient
from agents.predictions import action_dimensions
from npg.errors import ConfigurationError
from npg.optim import FisherInverse, StepNorm

KLReduction = Literal["joint", "per-dimension"]

# What annealing leaves of target_kl.
LAST_SHARE = 0.1


class TRPO(NaturalPolicyGradient):
    """Natural gradient inside a KL trust region, with a line search on the true divergence.

    The constructor takes sb3-contrib's arguments, in its order and with its defaults, and more.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or a policy class.
        env: Gymnasium id, environment, or vector of environments; ``envs.make`` makes fast ones.
        learning_rate: Of the critic's Adam; a number or a schedule of the remaining progress.
        n_steps: Steps per environment and update. More make a better gradient and fewer updates.
        batch_size: Rows per minibatch of the Adam critic.
        gamma: Discount factor.
        cg_max_steps: Bound on the Fisher products per update.
        cg_damping: Added to the Fisher matrix' diagonal; higher turns towards the plain gradient.
        line_search_shrinking_factor: Ratio of successive trials.
        line_search_max_iter: Trials before the policy stays as it is.
        n_critic_updates: Epochs of the Adam critic.
        gae_lambda: 0 trusts the critic (low variance), 1 the returns (no bias).
        use_sde: Whether to explore by gSDE.
        sde_sample_freq: Steps between new gSDE matrices; −1 is once per rollout.
        rollout_buffer_class: Another buffer class takes Stable-Baselines3's own, slower rollout.
        rollout_buffer_kwargs: Its further arguments.
        normalize_advantage: Whether advantages get mean 0 and deviation 1.
        target_kl: Bound on KL(old ‖ new), averaged over the rollout's states, nats.
        sub_sampling_factor: The Fisher products use one of so many samples, drawn at random;
            gradient and line search use all.
        stats_window_size: Episodes in the logged means.
        tensorboard_log: Directory of TensorBoard logs.
        policy_kwargs: Arguments of the policy class.
        verbose: 0 silent, 1 a table per update.
        seed: Seeds everything.
        device: "cpu", "cuda", "auto".
        _init_setup_model: Whether to build the networks at once.
        kl_reduction: "joint" bounds the KL of whole actions. "per-dimension" is sb3-contrib's:
            ``target_kl`` and ``cg_damping`` count per action dimension, so that a Box of 6
            coordinates moves as far as under a joint target 6 times as large. Default: joint, with
            one warning where the two differ.
        curvature: "fisher-cg", "fisher-dense" for policies of a few thousand parameters, or "kfac":
            the direction from Kronecker factors, without conjugate gradient.
        critic: "adam" minibatches, or "gauss-newton" steps on the whole rollout: faster.
        critic_steps: Gauss–Newton steps per update.
        step_norm: "fisher" starts the line search on the boundary of the trust region, "damped" a
            little inside, where sb3-contrib starts it: steadier where late steps overshoot.
        kl_annealing: Last share of the training over which ``target_kl`` falls linearly, to a tenth
            at the end: 0 never, 0.5 in its second half. Small last steps leave a policy that is
            steadier and better when it acts without noise.
        cg_preconditioner: "kfac" preconditions conjugate gradient by Kronecker factors, for fewer
            products per update.

    Raises:
        ConfigurationError: If an argument cannot work; the message says which and why.

    Reference:
        Schulman et al., "Trust region policy optimization", 2015.
    """

    _warned_about_joint_kl = False
    _mark = "line_search_max_iter"

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
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float = 0.01,
        sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        kl_reduction: KLReduction | None = None,
        curvature: FisherInverse = "fisher-cg",
        critic: CriticKind = "adam",
        critic_steps: int = 2,
        step_norm: StepNorm = "fisher",
        kl_annealing: float = 0.0,
        cg_preconditioner: Literal["kfac"] | None = None,
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
            cg_preconditioner=cg_preconditioner,
        )
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.kl_reduction = kl_reduction
        self.step_norm = step_norm
        self.kl_annealing = kl_annealing
        if _init_setup_model:
            self._warn_about_joint_kl()
            self._setup_model()

    def _check_values(self) -> None:
        super()._check_values()
        check_fractions(kl_annealing=self.kl_annealing)

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.kl_reduction not in (None, "joint", "per-dimension"):
            raise ConfigurationError(
                f'kl_reduction must be "joint" or "per-dimension", got {self.kl_reduction!r}'
            )
        if self.step_norm not in ("fisher", "damped"):
            raise ConfigurationError(
                f'step_norm must be "fisher" or "damped", got {self.step_norm!r}'
            )

    def _warn_about_joint_kl(self) -> None:
        """Tells who comes from sb3-contrib, once; a loaded agent keeps what its file says."""
        dimensions = action_dimensions(self.action_space)
        if self.kl_reduction is None and dimensions > 1 and not TRPO._warned_about_joint_kl:
            TRPO._warned_about_joint_kl = True
            warnings.warn(
                f"target_kl={self.target_kl} bounds the joint KL of the {dimensions}-dimensional "
                "action here. sb3-contrib's TRPO averages over the dimensions too, so its trust "
                f"region at the same number is {dimensions} times larger: pass "
                f'target_kl={self.target_kl * dimensions:g}, or kl_reduction="per-dimension" to '
                'keep its meaning; kl_reduction="joint" silences this',
                stacklevel=4,
            )

    def _step_rule(self) -> dict[str, Any]:
        per_dimension = self.kl_reduction == "per-dimension"
        dimensions = action_dimensions(self.action_space) if per_dimension else 1
        return {
            "lr": 1.0,
            "target_kl": self.target_kl * self._annealing() * dimensions,
            "damping": self.cg_damping * dimensions,
            "step_norm": self.step_norm,
            "line_search_shrinking_factor": self.line_search_shrinking_factor,
            "line_search_max_iter": self.line_search_max_iter,
        }

    def _annealing(self) -> float:
        """Share of ``target_kl`` that is left at this moment of the training."""
        if self.kl_annealing == 0:
            return 1.0
        left = self._current_progress_remaining / self.kl_annealing
        return min(1.0, max(LAST_SHARE, left))

    @classmethod
    def _foreign_arguments(cls, keys: Collection[str]) -> dict[str, Any]:
        if "kl_reduction" in keys:
            return {}
        return {
            "kl_reduction": "per-dimension",
            "step_norm": "damped",
            "rollout_buffer_class": None,
        }

    learn = learning("TRPO", updates=1)
