"""Everything of an agent in one file: what ``save`` writes and ``load`` reads."""

import io
import os
import pathlib
import warnings
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import get_system_info

from agents import checkpoint
from agents.loading import built, give_states, reading
from agents.rank_states import of_all_ranks, of_this_rank, restore_generators
from agents.training_environments import environment_state, restore_environments
from agents.training_state import TrainingState
from npg import ranks
from npg.errors import CheckpointError

ENVIRONMENTS = "environments"


class OneFile(OnPolicyAlgorithm):
    """Saves and loads an agent; the algorithm itself is a subclass's."""

    training_optim_state: TrainingState
    _saved_environments: Mapping[str, Any] = MappingProxyType({})
    # An argument that only this algorithm's checkpoints hold.
    _mark: ClassVar[str] = "n_steps"

    def _excluded_save_params(self) -> list[str]:
        own = ["training_optim_state", "_saved_environments"]
        return [*super()._excluded_save_params(), *own]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "training_optim_state"], []

    def _attach_normaliser(self) -> None:
        """Makes the environments show what the policy of a loaded checkpoint was trained on."""

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

        Raises:
            CheckpointError: If a file is damaged, or of another model; one that fits in part may
                have been loaded in part.
        """
        if isinstance(load_path_or_dict, dict):
            super().set_parameters(load_path_or_dict, exact_match, device)
            return
        states = checkpoint.read(load_path_or_dict, device).states
        states.pop(ENVIRONMENTS, None)
        give_states(self, states, exact_match)

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Saves everything to one file, under a temporary name first, so that none is half-written.

        Args:
            path: File (".zip" is added where it has no ending), or file-like: there from its
                position on.
            exclude: Attributes to leave out.
            include: Attributes to keep that would be left out. "environments" keeps the state of
                the training environments, too: see :meth:`restore_environments`. All ranks of
                ``torch.distributed`` have to ask for it together; the first writes the file.
        """
        include = {*(include or ())}
        states = self.get_parameters()
        if ENVIRONMENTS in include:
            states[ENVIRONMENTS] = of_all_ranks(self, environment_state(self))
            if ranks.index() > 0:
                return
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
            path: File, or file-like: there from its position to its end.
            env: Environments to train on. Raw ones are wrapped with the normaliser of the file;
                a ``VecNormalize`` that has seen data is left alone.
            device: Where to put the policy.
            custom_objects: Attributes to take from here instead of from the file.
            print_system_info: Whether to print the versions of now and those at saving.
            force_reset: Whether training starts with a reset of the environments.
            trust: Whether to unpickle what the file has pickled. This runs whatever code its author
                put there: only for files of yours, or of somebody you would let use your account.
            **kwargs: Constructor arguments to change.

        Returns:
            The agent, with generators and normaliser as they were.

        Raises:
            CheckpointError: If the file is missing, damaged, needs ``trust``, or is no checkpoint
                of such an agent, or its parameters do not fit the policy.
        """
        saved = checkpoint.read(path, device, trust)
        if print_system_info:
            print("== CURRENT SYSTEM INFO ==")
            get_system_info()
            print("== SAVED MODEL SYSTEM INFO ==")
            print(saved.system)
        if not cls._owns(saved.names):
            raise CheckpointError(
                f"{path} is a checkpoint of another algorithm than {cls.__name__}: it has no "
                f"{cls._mark!r}"
            )
        kwargs = {**cls._foreign_arguments(saved.names), **kwargs}
        if "training_optim_state" not in saved.states:
            saved.states["training_optim_state"] = {}
            warnings.warn(
                f"{path} holds no optimizer, normaliser and generator state of this library (it "
                "was saved by another): these start afresh",
                stacklevel=2,
            )
        environments = saved.states.pop(ENVIRONMENTS, {})
        if not isinstance(environments, Mapping):
            raise CheckpointError(f"{path}: states.{ENVIRONMENTS} is no dictionary")
        attributes = saved.attributes(custom_objects or {})
        model = built(cls, attributes, saved.states, env, device, force_reset, kwargs)
        own = of_this_rank(environments)
        model._saved_environments = own.get("environments", {})
        with reading(f"{path}: states.training_optim_state"):
            model._attach_normaliser()
            if "seed" not in kwargs:
                restore_generators(model, own)
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
