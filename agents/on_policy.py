"""The base of every on-policy agent: SB3's contract, lean rollouts, one-file state."""

import io
import os
import pathlib
import warnings
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self

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
from stable_baselines3.common.utils import get_system_info
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from agents import checkpoint
from agents.collecting import collect
from agents.loading import built
from agents.predictions import Parts
from agents.rollout import DictRollout, Rollout
from agents.training_environments import environment_state, restore_environments
from agents.training_state import TrainingState
from envs import LeanVecEnv, normalization_state, normalizer_from_state
from npg.errors import CheckpointError, ConfigurationError

SUPPORTED_ACTIONS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class OnPolicy(OnPolicyAlgorithm):
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
    _saved_environments: Mapping[str, Any] = MappingProxyType({})
    # An argument that only this algorithm's checkpoints hold.
    _mark: ClassVar[str] = "n_steps"

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
        _refuse_unsupported(self.policy_class)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if not isinstance(env, VecEnv):
            single = env
            env = LeanVecEnv([lambda: single])
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _check_settings(self) -> None:
        """Refuses arguments that cannot work; all attributes are set when it is called."""

    def _setup_model(self) -> None:
        self._check_settings()
        if self.rollout_buffer_class is None:
            dictionary = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = DictRollout if dictionary else Rollout
        super()._setup_model()
        self.parts = Parts(self.policy, self.observation_space)
        self.training_optim_state = TrainingState(self)
        self._build_optimizers()
        self.skipped_updates = 0

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
        if isinstance(rollout_buffer, (Rollout, DictRollout)):
            return collect(self, env, callback, rollout_buffer, n_rollout_steps)
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

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
        own = ["parts", "training_optim_state", "_saved_environments"]
        return [*super()._excluded_save_params(), *own]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "training_optim_state"], []

    def set_parameters(
        self,
        load_path_or_dict: str | dict[str, Any],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Loads parameters, as Stable-Baselines3 does.

        Args:
            load_path_or_dict: File, or what ``get_parameters`` returned.
            exact_match: Whether every parameter of the model must be given.
            device: Where to put them.
        """
        if not isinstance(load_path_or_dict, dict):
            load_path_or_dict = checkpoint.read(load_path_or_dict, device).states
        super().set_parameters(load_path_or_dict, exact_match, device)

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Saves everything to one file, under a temporary name first, so that none is half-written.

        Args:
            path: File (".zip" is added where it has no ending), or file-like.
            exclude: Attributes to leave out.
            include: Attributes to keep that would be left out. "environments" keeps the state of
                the training environments, too: see :meth:`restore_environments`.
        """
        include = {*(include or ())}
        states = self.get_parameters()
        if "environments" in include:
            states["environments"] = environment_state(self)
        left_out = {*self._excluded_save_params(), *(exclude or ())} - include
        left_out |= {name.partition(".")[0] for name in self._get_torch_save_params()[0]}
        attributes = {name: value for name, value in vars(self).items() if name not in left_out}
        if not isinstance(path, (str, pathlib.Path)):
            checkpoint.write(path, attributes, states)
            return
        final = pathlib.Path(path)
        final = final if final.suffix else final.with_suffix(".zip")
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                checkpoint.write(file, attributes, states)
                os.fsync(file.fileno())
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(
        cls,
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        trust: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Loads a checkpoint of this library, or one of the SB3 class of this name.

        No code of the file is run: a policy, a schedule or anything else of a kind that is not this
        library's, torch's or Stable-Baselines3's is refused by name.

        Args:
            path: File, or file-like.
            env: Environments to train on. Raw ones are wrapped with the normaliser of the file;
                a ``VecNormalize`` that has seen data is left alone.
            device: Where to put the policy.
            custom_objects: Attributes to take from here instead of from the file.
            print_system_info: Whether to print versions now and at saving.
            force_reset: Whether training starts with a reset of the environments.
            trust: Whether to unpickle what the file has pickled. This runs whatever code its author
                put there: only for files of yours, or of somebody you would let use your account.
            **kwargs: Constructor arguments to change.

        Returns:
            The agent, with generators and normaliser as they were.

        Raises:
            CheckpointError: If the file is missing, damaged, needs ``trust``, or is no checkpoint
                of such an agent.
            RuntimeError: If its parameters do not fit the policy.
        """
        if print_system_info:
            get_system_info()

        def check(names: Collection[str]) -> None:
            if not cls._owns(names):
                raise CheckpointError(
                    f"{path} is a checkpoint of another algorithm than {cls.__name__}: it has no "
                    f"{cls._mark!r}"
                )

        saved = checkpoint.read(path, device, custom_objects, trust, check)
        kwargs = {**cls._foreign_arguments(saved.attributes), **kwargs}
        if "training_optim_state" not in saved.states:
            saved.states["training_optim_state"] = {}
            warnings.warn(
                f"{path} holds no optimizer, normaliser and generator state of this library (it "
                "was saved by another): these start afresh",
                stacklevel=2,
            )
        environments = saved.states.pop("environments", {})
        model = built(cls, saved, env, device, force_reset, kwargs)
        model._saved_environments = environments
        model._attach_normaliser()
        if "seed" not in kwargs:
            model.training_optim_state.restore_generators()
        return model

    def restore_environments(self) -> str:
        """Puts the training environments where they were when the checkpoint was saved.

        Training then goes on as if it had not been interrupted, bit for bit, if the checkpoint was
        saved between an update and the next rollout (``on_rollout_start`` of a callback) and
        nothing else changes: the number of environments, the machine, the versions.

        Returns:
            Why it cannot be done, and episodes begin anew; empty if it was done.
        """
        return restore_environments(self, self._saved_environments)

    @classmethod
    def _owns(cls, keys: Collection[str]) -> bool:
        """Whether a checkpoint that holds these arguments is one of this algorithm."""
        return cls._mark in keys

    @classmethod
    def _foreign_arguments(cls, keys: Collection[str]) -> dict[str, Any]:
        """Arguments that make a file of another library mean what it meant there."""
        return {}

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
