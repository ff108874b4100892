"""Proximal policy optimisation."""

from collections.abc import Collection
from typing import Any

import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from agents.learning import learning
from agents.proximal_policy import ProximalPolicy


class PPO(ProximalPolicy):
    """Epochs of minibatches on a surrogate that does not reward going far from the old policy.

    L = −mean min(r A, clip(r, 1 − ε, 1 + ε) A) − ``ent_coef`` mean H(π) + ``vf_coef`` mean (V − R)²
    with r = π(a|s) / π_old(a|s), its gradient clipped to ``max_grad_norm``. The constructor takes
    Stable-Baselines3's arguments, in its order and with its defaults, and one more; minibatches and
    updates are the same.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or a policy class.
        env: Gymnasium id, environment, or vector of environments; ``envs.make`` makes fast ones.
        learning_rate: Of the optimizer; a number or a schedule of the remaining progress.
        n_steps: Steps per environment and rollout. More make better advantages and fewer rollouts.
        batch_size: Samples per minibatch. Fewer make more and noisier steps.
        n_epochs: Passes over a rollout. More learn more from it, until the clipping ends that.
        gamma: Discount factor.
        gae_lambda: 0 trusts the critic (low variance), 1 the returns (no bias).
        clip_range: ε; a number or a schedule. Higher lets an update change the policy more.
        clip_range_vf: The same for the value, in units of the return, so that it depends on the
            reward's scale. None does not clip it.
        normalize_advantage: Whether advantages get mean 0 and deviation 1 in every minibatch.
        ent_coef: Weight of the entropy: higher explores longer.
        vf_coef: Weight of the value loss; it matters most where actor and critic share features.
        max_grad_norm: Longest gradient, actor's and critic's together; infinity does not clip.
        use_sde: Whether to explore by gSDE.
        sde_sample_freq: Steps between new gSDE matrices; −1 is once per rollout.
        rollout_buffer_class: Another buffer class takes Stable-Baselines3's own, slower rollout.
        rollout_buffer_kwargs: Its further arguments.
        target_kl: An update ends before the minibatch whose KL estimate is above 1.5 times this,
            nats. None never ends one.
        stats_window_size: Episodes in the logged means.
        tensorboard_log: Directory of TensorBoard logs.
        policy_kwargs: Arguments of the policy class.
        verbose: 0 silent, 1 a table per update.
        seed: Seeds everything.
        device: "cpu", "cuda", "auto".
        _init_setup_model: Whether to build the networks at once.
        optimizer: Name of an optimizer of ``npg.optim`` that takes gradients, in place of the
            policy's own choice, Adam unless ``policy_kwargs`` has an ``optimizer_class``.

    Raises:
        ConfigurationError: If an argument cannot work; the message says which and why.

    Reference:
        Schulman et al., "Proximal policy optimization algorithms", 2017.
    """

    _mark = "clip_range"

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
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
            batch_size=batch_size,
            n_epochs=n_epochs,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            target_kl=target_kl,
        )
        if _init_setup_model:
            self._setup_model()

    @classmethod
    def _foreign_arguments(cls, keys: Collection[str]) -> dict[str, Any]:
        return {} if "optimizer" in keys else {"rollout_buffer_class": None}

    learn = learning("PPO", updates=1)
