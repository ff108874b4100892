"""REINFORCE."""

from typing import Any, Literal

import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from agents.arguments import check_more_samples
from agents.first_order import FirstOrder
from agents.learning import learning
from agents.plain_steps import fuse
from agents.rollout import Batch
from npg import ranks
from npg.errors import ConfigurationError

Baseline = Literal["value", "mean", "none"]


class REINFORCE(FirstOrder):
    """One gradient step per rollout on its actions' log-likelihood, weighted by their returns.

    L = −mean (R − b) log π(a|s) − ``ent_coef`` mean H(π) + ``vf_coef`` mean (V − R)², its gradient
    clipped to ``max_grad_norm``. R is the discounted sum of the rewards that follow, to the end of
    the episode; where a time limit or the rollout ends first, V stands for the rest, whatever the
    baseline. As in most implementations the discount γᵗ of the state itself is left out.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or a policy class.
        env: Gymnasium id, environment, or vector of environments; ``envs.make`` makes fast ones.
        learning_rate: Of the optimizer; a number or a schedule of the remaining progress.
        n_steps: Steps per environment and update. Several episodes should fit: the returns of a
            few are noise.
        gamma: Discount factor.
        baseline: b, which takes noise out of the gradient: "value" is V(s), as it was before the
            rollout; "mean" the mean return of the other samples of the rollout; "none" is 0.
            None of them biases the gradient, but "mean" a little where samples share an episode.
        ent_coef: Weight of the entropy: higher explores longer.
        vf_coef: Weight of the value loss; it matters most where actor and critic share features.
        max_grad_norm: Longest gradient, actor's and critic's together; infinity does not clip.
        use_sde: Whether to explore by gSDE.
        sde_sample_freq: Steps between new gSDE matrices; −1 is once per rollout.
        rollout_buffer_class: Another buffer class takes Stable-Baselines3's own, slower rollout.
        rollout_buffer_kwargs: Its further arguments.
        normalize_advantage: Whether R − b gets mean 0 and deviation 1.
        stats_window_size: Episodes in the logged means.
        tensorboard_log: Directory of TensorBoard logs.
        policy_kwargs: Arguments of the policy class.
        verbose: 0 silent, 1 a table per hundred updates.
        seed: Seeds everything.
        device: "cpu", "cuda", "auto".
        _init_setup_model: Whether to build the networks at once.
        optimizer: Name of an optimizer of ``npg.optim`` that takes gradients, in place of the
            policy's own choice, Adam unless ``policy_kwargs`` has an ``optimizer_class``.

    Raises:
        ConfigurationError: If an argument cannot work; the message says which and why.

    Reference:
        Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
        learning", 1992.
    """

    _mark = "baseline"

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-3,
        n_steps: int = 512,
        gamma: float = 0.99,
        baseline: Baseline = "value",
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        optimizer: str | None = None,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=1.0,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            normalize_advantage=normalize_advantage,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            optimizer=optimizer,
        )
        self.baseline = baseline
        if _init_setup_model:
            self._setup_model()

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.baseline not in ("value", "mean", "none"):
            raise ConfigurationError(
                f'baseline must be "value", "mean" or "none", got {self.baseline!r}'
            )
        if self.baseline == "mean" and self.env is not None:
            check_more_samples(
                "take the mean return of the others", self.n_steps, self.env.num_envs
            )

    def _build_optimizers(self) -> None:
        super()._build_optimizers()
        fuse(self.policy.optimizer)

    def _advantages(self, samples: Batch) -> Tensor:
        if self.baseline == "value":
            return super()._advantages(samples)
        returns = samples.returns
        if self.baseline == "none":
            return returns
        total = ranks.average(float(returns.sum())) * ranks.count()
        others = (total - returns) / (len(returns) * ranks.count() - 1)
        return returns - others

    learn = learning("REINFORCE", updates=100)
