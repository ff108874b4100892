"""The update that NPG and TRPO share: a natural gradient on the surrogate, then nothing else.

The policy and a classifier run the same lines: the surrogate is a loss, the policy's action
distribution a prediction, and :class:`npg.optim.NaturalGradient` does the step.
"""

import math
from numbers import Real
from typing import Any, Literal

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import explained_variance
from torch import Tensor, distributions

from agents.arguments import (
    check_fractions,
    check_not_negative,
    check_samples_to_normalise,
    check_whole,
    warn_of_truncated_batches,
)
from agents.critics import AdamCritic, Critic, CriticKind, GaussNewtonCritic, Snapshot
from agents.on_policy import OnPolicy
from agents.predictions import prediction, take
from agents.rollout import Batch, batch, standardised
from agents.shared_features import KLBudget, behaviour_of
from npg import ranks
from npg.errors import ConfigurationError
from npg.likelihoods import likelihood
from npg.optim import FisherInverse, NaturalGradient, StepReport

# Squares of larger returns leave float32, and Adam's second moment with them, for good.
LARGEST_RETURN = 1e15


class NaturalPolicyGradient(OnPolicy):
    """Base of TRPO and NPG: ``train()`` by the natural gradient of the surrogate objective.

    Subclasses document the arguments and say in :meth:`_step_rule` how far to go.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        *,
        batch_size: int,
        target_kl: float,
        cg_max_steps: int,
        cg_damping: float,
        n_critic_updates: int,
        normalize_advantage: bool,
        sub_sampling_factor: int,
        curvature: FisherInverse,
        critic: CriticKind,
        critic_steps: int,
        cg_preconditioner: Literal["kfac"] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(policy, env, ent_coef=0.0, vf_coef=0.0, max_grad_norm=0.0, **base)
        self.batch_size = batch_size
        self.target_kl = target_kl
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.n_critic_updates = n_critic_updates
        self.normalize_advantage = normalize_advantage
        self.sub_sampling_factor = sub_sampling_factor
        self.curvature = curvature
        self.critic = critic
        self.critic_steps = critic_steps
        self.cg_preconditioner = cg_preconditioner

    def _check_values(self) -> None:
        """Refuses arguments that cannot work, by name."""
        if not (isinstance(self.target_kl, Real) and 0 < self.target_kl < math.inf):
            raise ConfigurationError(
                f"target_kl must be a positive number (0.01 is usual), got {self.target_kl!r}"
            )
        check_fractions(gamma=self.gamma, gae_lambda=self.gae_lambda)
        check_not_negative(cg_damping=self.cg_damping)
        check_whole(
            n_steps=self.n_steps,
            batch_size=self.batch_size,
            cg_max_steps=self.cg_max_steps,
            n_critic_updates=self.n_critic_updates,
            sub_sampling_factor=self.sub_sampling_factor,
            critic_steps=self.critic_steps,
        )
        if self.critic not in ("adam", "gauss-newton"):
            raise ConfigurationError(
                f'critic must be "adam" or "gauss-newton", got {self.critic!r}'
            )

    def _check_settings(self) -> None:
        """The same, and how they fit the environments, before anything is built."""
        self._check_values()
        if self.env is None:
            return
        if self.normalize_advantage:
            check_samples_to_normalise(self.n_steps, self.env.num_envs * ranks.count())
        if self.critic == "adam":
            environments = self.env.num_envs * ranks.count()
            warn_of_truncated_batches(self.batch_size, self.n_steps, environments)

    def _step_rule(self) -> dict[str, Any]:
        """Settings of NaturalGradient that say how far to go, in units of the joint KL.

        ``target_kl`` and ``damping`` must be among them.
        """
        raise NotImplementedError

    def _actor_settings(self) -> dict[str, Any]:
        return {**self._step_rule(), "cg_max_steps": self.cg_max_steps}

    def _build_optimizers(self) -> None:
        self.actor_optimizer = NaturalGradient(
            self.policy,
            parameters=self.parts.actor,
            curvature=self.curvature,
            cg_preconditioner=self.cg_preconditioner,
            seed=ranks.index(),  # every rank draws labels of its own
            **self._actor_settings(),
        )
        self.actor_optimizer.distributed = ranks.count() > 1
        self.critic_fit: Critic = (
            AdamCritic(self.policy, self.parts, self.n_critic_updates, self.batch_size)
            if self.critic == "adam"
            else GaussNewtonCritic(self.policy, self.parts, self.critic_steps)
        )

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizers: dict[str, torch.optim.Optimizer] = {"actor": self.actor_optimizer}
        if isinstance(self.critic_fit, GaussNewtonCritic):
            optimizers["critic"] = self.critic_fit.optimizer
            if self.critic_fit.head is not None:
                optimizers["critic_head"] = self.critic_fit.head
        return optimizers

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "actor_optimizer", "critic_fit"]

    def train(self) -> None:
        """Updates critic and policy from the rollout.

        The critic comes first: where it shares features with the actor, what it does to the policy
        counts against the same trust region. A rollout whose returns no float can hold is skipped,
        counted in ``train/skipped_updates``.
        """
        self._update_learning_rate(self.policy.optimizer)
        samples = batch(self.rollout_buffer, self.action_space, self.device)
        self._n_updates += 1
        largest = float(samples.returns.abs().max())
        usable = largest < LARGEST_RETURN and bool(torch.isfinite(samples.advantages).all())
        if ranks.any_rank(not usable):
            self._skip(f"returns up to {largest:g} are too large to learn from; scale the reward")
            return
        self._follow_attributes()
        target = self.actor_optimizer.param_groups[0]["target_kl"] or self.target_kl
        self.policy.set_training_mode(False)
        behaviour = behaviour_of(self.policy, samples.observations)
        before = Snapshot([*self.policy.parameters(), *self.policy.buffers()])

        budget = KLBudget(
            self.policy, self.parts.shared, samples.observations, behaviour, target / 2
        )
        try:
            self.policy.set_training_mode(True)
            self._let_statistics_follow(samples)
            value_loss = self.critic_fit.fit(samples, budget)
            budget.enforce()
            self.policy.set_training_mode(False)
            report = self._step(samples, behaviour)
        except BaseException:  # no memory, Ctrl-C in a notebook: all of the update or none
            before.restore()
            self.policy.set_training_mode(False)
            raise
        if ranks.any_rank(not before.finite()):
            before.restore()
            self._skip("the update left the finite numbers and was undone")
            return
        self._log(report, value_loss, report.kl if report.accepted else budget.kl(), target)

    def _follow_attributes(self) -> None:
        """Hands on what callbacks and load() may have changed since the last update.

        ``critic`` and ``curvature`` are not among it: they choose what was built.
        """
        self._check_values()
        self.actor_optimizer.param_groups[0].update(self._actor_settings())
        if isinstance(self.critic_fit, AdamCritic):
            self.critic_fit.epochs = self.n_critic_updates
            self.critic_fit.batch_size = self.batch_size
        elif isinstance(self.critic_fit, GaussNewtonCritic):
            self.critic_fit.steps = self.critic_steps

    def _let_statistics_follow(self, samples: Batch) -> None:
        """Shows the rollout to the actor's BatchNorm layers: the critic's fit may not run them."""
        if any(getattr(m, "track_running_stats", False) for m in self.policy.modules()):
            with torch.no_grad():
                self.policy.get_distribution(samples.observations)

    def _step(self, samples: Batch, behaviour: list[distributions.Distribution]) -> StepReport:
        """Takes the policy step; see the class of the optimizer for what is guaranteed."""
        advantages = samples.advantages
        if self.normalize_advantage:
            advantages = standardised(advantages)

        def closure() -> tuple[Tensor, distributions.Distribution]:
            distribution = self.policy.get_distribution(samples.observations)
            ratio = (distribution.log_prob(samples.actions) - samples.log_probs).exp()
            return -(advantages * ratio).mean(), prediction(distribution)

        curvature_prediction = None
        if self.sub_sampling_factor > 1:
            count = max(1, len(advantages) // self.sub_sampling_factor)
            rows = torch.randperm(len(advantages))[:count].to(self.device)
            observations = take(samples.observations, rows)

            def curvature_prediction() -> distributions.Distribution:
                return prediction(self.policy.get_distribution(observations))

        return self.actor_optimizer.step(
            closure,
            reference=behaviour[0] if len(behaviour) == 1 else _joined(behaviour),
            prediction=curvature_prediction,
        )

    def _log(self, report: StepReport, value_loss: float, kl: float, target_kl: float) -> None:
        moved = report.accepted
        buffer = self.rollout_buffer
        record = self.logger.record
        record("train/policy_objective", -(report.loss_after if moved else report.loss))
        record("train/value_loss", value_loss)
        record("train/kl_divergence_loss", kl)
        record("train/target_kl", target_kl)  # of this update, joint as the KL is
        record(
            "train/explained_variance",
            explained_variance(buffer.values.flatten(), buffer.returns.flatten()),
        )
        record("train/is_line_search_success", float(moved))
        record("train/step_fraction", report.fraction)
        if report.cg_iterations:
            record("train/cg_iterations", report.cg_iterations)
            record("train/cg_residual", report.cg_residual)
        if not moved and report.reason != "line search failed":  # a zero gradient, for instance
            self._skip(f"no policy step, {report.reason}")
        if hasattr(self.policy, "log_std"):
            record("train/std", torch.exp(self.policy.log_std).mean().item())
        record("train/n_updates", self._n_updates, exclude="tensorboard")


def _joined(parts: list[distributions.Distribution]) -> distributions.Distribution:
    """One distribution from the chunks of a large rollout."""
    family = likelihood(parts[0])
    columns = zip(*(family.tensors(part) for part in parts), strict=True)
    joined: distributions.Distribution = family.rebuild(
        parts[0], tuple(torch.cat(column) for column in columns)
    )
    return joined
