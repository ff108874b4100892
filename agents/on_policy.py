"""The base of every on-policy agent: SB3's contract, lean rollouts, one-file state."""

import warnings
from typing import Any, ClassVar

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from agents.collecting import collect
from agents.one_file import OneFile
from agents.over_ranks import CommonStatistics, begin_alike, stay_alike
from agents.predictions import Parts
from agents.rollout import DictRollout, Rollout
from agents.training_state import TrainingState
from envs import LeanVecEnv, normalization_state, normalizer_from_state
from npg import ranks
from npg.errors import ConfigurationError

SUPPORTED_ACTIONS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class OnPolicy(OneFile):
    """Rollouts, advantages, checkpoints; a subclass implements ``train()``.

    It differs from Stable-Baselines3's class in this: rollouts cost little more than the
    environments; time limits are bootstrapped in the advantage, and rewards stay as they were;
    observation and reward normalisers, generators and every optimizer are saved inside the
    checkpoint.

    Attributes:
        parts: Which of the policy's parameters the actor, the critic and both use.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }
    policy: ActorCriticPolicy

    def __init__(
        self, policy: str | type[ActorCriticPolicy], env: GymEnv | str | None, **base: Any
    ) -> None:
        if isinstance(env, str):
            env = _registered(env)
        super().__init__(
            policy,
            env,
            **base,
            _init_setup_model=False,
            supported_action_spaces=SUPPORTED_ACTIONS,
        )
        self.skipped_updates = 0
        _refuse_unsupported(self.policy_class)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if not isinstance(env, VecEnv):
            single = env
            env = LeanVecEnv([lambda: single])
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _check_settings(self) -> None:
        """Refuses arguments that cannot work; all attributes are set when it is called."""

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seeds the generators, those of every rank otherwise, and the environments.

        Args:
            seed: Of the first environment of the first rank; all others count on from it, as those
                of one process with so many environments do.
        """
        if seed is not None and self.env is not None:
            seed += ranks.index() * self.env.num_envs
        super().set_random_seed(seed)

    def _setup_model(self) -> None:
        self._check_settings()
        if self.rollout_buffer_class is None:
            dictionary = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = DictRollout if dictionary else Rollout
        super()._setup_model()
        self.parts = Parts(self.policy, self.observation_space)
        self.training_optim_state = TrainingState(self)
        self._build_optimizers()
        self._ranks = ranks.count()

    def _check_alike(self) -> None:
        """Refuses ranks that would not send each other messages of the same size."""
        assert self.env is not None
        sizes = {
            "num_envs": self.env.num_envs,
            "n_steps": self.n_steps,
            "batch_size": getattr(self, "batch_size", 0),
            "number of parameters": sum(p.numel() for p in self.policy.parameters()),
        }
        if ranks.any_rank(ranks.averages(sizes.values()) != [float(n) for n in sizes.values()]):
            raise ConfigurationError(
                f"all ranks of torch.distributed must have the same sizes; this one has {sizes}. "
                "with npg.ranks.alone() each trains for itself"
            )

    def _build_optimizers(self) -> None:
        """Makes what ``train`` needs; called whenever the policy is made anew."""

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimizers other than the policy's own, by the names under which they are saved."""
        return {}

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Fills the rollout; see :func:`agents.collecting.collect`.

        Args:
            env: The training environments.
            callback: Called at every step.
            rollout_buffer: Buffer to fill. One of another class than ours takes
                Stable-Baselines3's own path.
            n_rollout_steps: Steps per environment.

        Returns:
            False if the callback stopped the training.
        """
        stay_alike(self)
        if isinstance(rollout_buffer, (Rollout, DictRollout)):
            whole = collect(self, env, callback, rollout_buffer, n_rollout_steps)
        else:
            before = self.num_timesteps
            whole = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
            self.num_timesteps += (self.num_timesteps - before) * (ranks.count() - 1)
        return self._agreed(whole)

    def _agreed(self, whole: bool) -> bool:
        """Whether every rank has a whole rollout; counters and normalisers then know of all."""
        self.num_timesteps = round(ranks.average(self.num_timesteps))
        if self._common_statistics is not None:
            self._common_statistics.merge()
        return not ranks.any_rank(not whole)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        """Prepares training; ranks begin with one policy."""
        if self._ranks != ranks.count():
            raise ConfigurationError(
                f"the agent was made for {self._ranks} ranks of torch.distributed, and there are "
                f"{ranks.count()}: join the process group first, and make or load the agent then"
            )
        self._check_alike()
        begin_alike(self)
        normaliser = self.get_vec_normalize_env()
        several = ranks.count() > 1 and normaliser is not None
        self._common_statistics = CommonStatistics(normaliser) if several else None
        begun: tuple[int, BaseCallback] = super()._setup_learn(*args, **kwargs)
        return begun

    def _skip(self, reason: str) -> None:
        """Counts and logs an update that was not made; the first one is a warning, too."""
        self.skipped_updates += 1
        self.logger.record("train/skipped_updates", self.skipped_updates)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if self.skipped_updates == 1:
            warnings.warn(
                f"update {self._n_updates} skipped: {reason}; train/skipped_updates counts them",
                stacklevel=3,
            )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "parts", "_ranks", "_common_statistics"]

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Changes the environments; raw ones get the present normaliser.

        Args:
            env: Environments with the same spaces and number.
            force_reset: Whether training starts with a reset.
        """
        current = self.get_vec_normalize_env()
        if current is not None:
            self.training_optim_state.normaliser = normalization_state(current)
        super().set_env(env, force_reset)
        self._attach_normaliser()

    def _attach_normaliser(self) -> None:
        """Makes the environments show what the policy of a loaded checkpoint was trained on."""
        state = self.training_optim_state.normaliser
        if state is None or self.env is None:
            return
        existing = unwrap_vec_normalize(self.env)
        if existing is None:
            self.env = normalizer_from_state(self.env, state)
            self._vec_normalize_env = unwrap_vec_normalize(self.env)
        else:
            self.training_optim_state.fill(existing)


def _registered(env_id: str) -> gym.Env:
    """Makes an environment by id; the passive checker would cost something at every step."""
    try:
        return gym.make(env_id, render_mode="rgb_array", disable_env_checker=True)
    except (TypeError, ValueError):  # an environment that does not draw itself
        return gym.make(env_id, disable_env_checker=True)


def _refuse_unsupported(policy_class: type[BasePolicy]) -> None:
    name = policy_class.__name__
    if "Recurrent" in name or hasattr(policy_class, "lstm_actor"):
        raise ConfigurationError(
            f"{name}: recurrent policies are not supported yet; stack frames instead "
            "(VecFrameStack), or use sb3_contrib.RecurrentPPO"
        )
    if "Maskable" in name:
        raise ConfigurationError(
            f"{name}: action masks are not supported yet; use sb3_contrib.MaskablePPO"
        )
    if not issubclass(policy_class, ActorCriticPolicy):
        raise ConfigurationError(f"{name} is not a stable_baselines3 ActorCriticPolicy")
