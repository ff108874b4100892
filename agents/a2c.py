"""Advantage actor-critic."""

from collections.abc import Collection
from typing import Any

import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from agents.arguments import check_not_negative
from agents.first_order import FirstOrder
from agents.learning import learning


class A2C(FirstOrder):
    """One gradient step per short rollout, on the policy gradient and the value loss together.

    L = −mean A log π(a|s) − ``ent_coef`` mean H(π) + ``vf_coef`` mean (V − R)², its gradient
    clipped to ``max_grad_norm``. The constructor takes Stable-Baselines3's arguments, in its order
    and with its defaults, and one more; the update is the same.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or a policy class.
        env: Gymnasium id, environment, or vector of environments; ``envs.make`` makes fast ones.
        learning_rate: Of the optimizer; a number or a schedule of the remaining progress.
        n_steps: Steps per environment and update. More make a better gradient and fewer updates.
        gamma: Discount factor.
        gae_lambda: 0 trusts the critic (low variance), 1 the returns (no bias).
        ent_coef: Weight of the entropy: higher explores longer.
        vf_coef: Weight of the value loss; it matters most where actor and critic share features.
        max_grad_norm: Longest gradient, actor's and critic's together; infinity does not clip.
        rms_prop_eps: Added to RMSprop's denominator; higher makes it more like plain descent.
        use_rms_prop: RMSprop; otherwise the policy's own choice, Adam unless ``policy_kwargs`` has
            an ``optimizer_class``.
        use_sde: Whether to explore by gSDE.
        sde_sample_freq: Steps between new gSDE matrices; −1 is once per rollout.
        rollout_buffer_class: Another buffer class takes Stable-Baselines3's own, slower rollout.
        rollout_buffer_kwargs: Its further arguments.
        normalize_advantage: Whether advantages get mean 0 and deviation 1.
        stats_window_size: Episodes in the logged means.
        tensorboard_log: Directory of TensorBoard logs.
        policy_kwargs: Arguments of the policy class.
        verbose: 0 silent, 1 a table per hundred updates.
        seed: Seeds everything.
        device: "cpu", "cuda", "auto".
        _init_setup_model: Whether to build the networks at once.
        optimizer: Name of an optimizer of ``npg.optim`` that takes gradients, in place of RMSprop.

    Raises:
        ConfigurationError: If an argument cannot work; the message says which and why.

    Reference:
        Mnih et al., "Asynchronous methods for deep reinforcement learning", 2016.
    """

    _mark = "rms_prop_eps"

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 7e-4,
        n_steps: int = 5,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        rms_prop_eps: float = 1e-5,
        use_rms_prop: bool = True,
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
        optimizer: str | None = None,
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
        self.rms_prop_eps = rms_prop_eps
        self.use_rms_prop = use_rms_prop
        if use_rms_prop and "optimizer_class" not in self.policy_kwargs:
            self.policy_kwargs = {
                **self.policy_kwargs,
                "optimizer_class": torch.optim.RMSprop,
                "optimizer_kwargs": {"alpha": 0.99, "eps": rms_prop_eps, "weight_decay": 0},
            }
        if _init_setup_model:
            self._setup_model()

    def _check_settings(self) -> None:
        super()._check_settings()
        check_not_negative(rms_prop_eps=self.rms_prop_eps)

    @classmethod
    def _owns(cls, keys: Collection[str]) -> bool:
        # Stable-Baselines3's A2C has no argument of its own: what its PPO and all of ours have more
        # tells them apart.
        others = {"batch_size", "skipped_updates"}
        foreign = "normalize_advantage" in keys and others.isdisjoint(keys)
        return super()._owns(keys) or foreign

    @classmethod
    def _foreign_arguments(cls, keys: Collection[str]) -> dict[str, Any]:
        return {} if cls._mark in keys else {"rollout_buffer_class": None}

    learn = learning("A2C", updates=100)
