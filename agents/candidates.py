"""Acting for several candidates at once: every environment has parameters of its own.

A small fully connected policy acts through NumPy, its weights stacked to [B, out, in]: one product
a layer for all environments. Any other policy acts through ``torch.func.vmap`` of its own choice of
an action, or, where its operations cannot be batched so, through one call per environment.
"""

import copy
import warnings
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor, nn
from torch.func import functional_call, vmap

from agents.acting import mirrored_layers
from agents.mirrors import Mirror, MirroredLayers, row_affine
from agents.rollout import Observations

# Vector steps whose noise is drawn at once, where candidates sample their actions.
STEPS_OF_NOISE = 256

# Policies that vmap was seen to fail on, and whether deterministic: populations have new actors.
_UNBATCHED: weakref.WeakKeyDictionary[ActorCriticPolicy, set[bool]] = weakref.WeakKeyDictionary()

Observed = np.ndarray | dict[str, np.ndarray]


class CandidateActor(Protocol):
    """What acts for all environments, each with its own parameters."""

    def seat(self, row: int, parameters: Tensor) -> None:
        """Gives an environment its parameters, flat [P]."""

    def act(self, observations: Observed) -> np.ndarray:
        """Chooses an action for every environment, as ``policy.predict`` would before clipping."""


class CandidateMirror(Mirror):
    """A :class:`Mirror` of which every row has its own parameters.

    Args:
        policy: A policy for which :func:`agents.acting.mirrored_layers` found the layers.
        layers: These.
        num_envs: Rows.
        parameters: Those that candidates differ in, in the order of their flat vectors.
        deterministic: Whether actions are the distribution's mode; otherwise they are drawn.
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        layers: MirroredLayers,
        num_envs: int,
        parameters: Sequence[Tensor],
        deterministic: bool,
    ) -> None:
        sizes = [p.numel() for p in parameters]
        self.flat = np.empty((num_envs, sum(sizes)), np.float32)
        pieces = np.split(self.flat, np.cumsum(sizes)[:-1], axis=1)
        self.stacked = {
            id(p): piece.reshape(num_envs, *p.shape)
            for p, piece in zip(parameters, pieces, strict=True)
        }
        self.deterministic = deterministic
        self.steps = 0
        super().__init__(policy, layers, num_envs, 1 if deterministic else STEPS_OF_NOISE)

    def seat(self, row: int, parameters: Tensor) -> None:
        """Gives a row its parameters, flat [P]."""
        self.flat[row] = parameters.cpu().numpy()

    def act(self, observations: Observed) -> np.ndarray:
        """Chooses an action for every row."""
        t = self.steps % len(self.noise)
        if t == 0 and self.steps and not self.deterministic:
            self.noise = self._draw(self.noise.shape)
            self.read()
        self.steps += 1
        return self.sample(t, _side_by_side(observations))

    def _draw(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, np.float32) if self.deterministic else super()._draw(shape)

    def _layers(self) -> list[tuple[Any, ...]]:
        return [
            (row_affine(self._rows(linear.weight), self._rows(linear.bias), output), after, output)
            for (linear, after), output in zip(self.linear, self.outputs, strict=True)
        ]

    def _rows(self, parameter: Tensor | None) -> np.ndarray | None:
        """One copy per row; what candidates do not differ in is the policy's own."""
        if parameter is None or id(parameter) in self.stacked:
            return self.stacked.get(id(parameter))
        own = parameter.detach().cpu().numpy()
        return np.broadcast_to(own, (len(self.flat), *own.shape))


def _side_by_side(observations: Observed) -> np.ndarray:
    """Flat rows [B, D]; of a dictionary, its columns one after another."""
    if not isinstance(observations, dict):
        return observations.reshape(len(observations), -1)
    columns = [column.reshape(len(column), -1) for column in observations.values()]
    return np.concatenate(columns, axis=1, dtype=np.float32, casting="unsafe")


class CandidateModules:
    """The same for any policy, through its modules.

    Args:
        policy: The policy, in evaluation mode.
        num_envs: Rows.
        parameters: Those that candidates differ in, in the order of their flat vectors.
        deterministic: Whether actions are the distribution's mode; otherwise they are drawn.
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        num_envs: int,
        parameters: Sequence[Tensor],
        deterministic: bool,
    ) -> None:
        self.policy = policy
        self.choice = _Choice(policy, deterministic)
        sizes = [p.numel() for p in parameters]
        self.flat = parameters[0].new_empty(num_envs, sum(sizes))
        pieces = {
            id(p): piece.view(num_envs, *p.shape)
            for p, piece in zip(parameters, self.flat.split(sizes, dim=1), strict=True)
        }
        # By places, not by names: a module of two names has one, a parameter of two modules two.
        self.stacked = {
            f"{path}.{name}": pieces[id(p)]
            for path, module in self.choice.named_modules()
            for name, p in module._parameters.items()
            if id(p) in pieces
        }
        self.batched = deterministic not in _UNBATCHED.get(policy, ())

    def seat(self, row: int, parameters: Tensor) -> None:
        """Gives a row its parameters, flat [P]."""
        self.flat[row] = parameters

    @torch.no_grad()
    def act(self, observations: Observed) -> np.ndarray:
        """Chooses an action for every row."""
        tensors = obs_as_tensor(observations, self.policy.device)
        if not self.batched:
            actions = self._one_by_one(tensors)
        else:
            try:
                actions = vmap(self._act_for_one, randomness="different")(self.stacked, tensors)
            except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
                actions = self._one_by_one(tensors)  # where the fault is not vmap's, it raises, too
                self._give_up_batches(error)
        return actions.reshape(len(self.flat), *self.policy.action_space.shape).cpu().numpy()

    def _one_by_one(self, tensors: Observations) -> Tensor:
        return torch.stack(
            [
                self._act_for_one({name: p[row] for name, p in self.stacked.items()}, one)
                for row, one in enumerate(_rows(tensors))
            ]
        )

    def _give_up_batches(self, error: Exception) -> None:
        """An operation has no batching rule, or a value decides what is computed."""
        self.batched = False
        _UNBATCHED.setdefault(self.policy, set()).add(self.choice.deterministic)
        warnings.warn(
            "candidates act by one call for each environment, which takes longer: torch.func.vmap "
            f"cannot batch {type(self.policy).__name__} ({str(error).partition('. ')[0]})",
            stacklevel=2,
        )

    def _act_for_one(self, parameters: dict[str, Tensor], observation: Observations) -> Tensor:
        if isinstance(observation, dict):
            one: Observations = {key: column.unsqueeze(0) for key, column in observation.items()}
        else:
            one = observation.unsqueeze(0)
        chosen = functional_call(self.choice, parameters, (one,), tie_weights=False)
        return chosen.squeeze(0)


class _Choice(nn.Module):
    """A policy's choice of an action as a module, which leaves its last distribution alone."""

    def __init__(self, policy: ActorCriticPolicy, deterministic: bool) -> None:
        super().__init__()
        self.policy = copy.copy(policy)  # its modules are shared
        self.policy.action_dist = copy.copy(policy.action_dist)
        self.deterministic = deterministic

    def forward(self, observations: Observations) -> Tensor:
        return self.policy._predict(observations, deterministic=self.deterministic)


def _rows(tensors: Observations) -> list[Observations]:
    if not isinstance(tensors, dict):
        return list(tensors)
    return [dict(zip(tensors, row, strict=True)) for row in zip(*tensors.values(), strict=True)]


def candidate_actor(
    policy: ActorCriticPolicy,
    space: spaces.Space,
    num_envs: int,
    parameters: Sequence[Tensor],
    deterministic: bool,
) -> CandidateActor:
    """Finds the fastest way to act.

    Args:
        policy: In evaluation mode.
        space: Its observation space.
        num_envs: Environments.
        parameters: Those that candidates differ in, in the order of their flat vectors.
        deterministic: Whether actions are the distribution's mode; otherwise they are drawn.

    Returns:
        What acts; no row has parameters yet.
    """
    layers = mirrored_layers(policy, space)
    if layers is None or policy.use_sde:  # candidates have no exploration matrices
        return CandidateModules(policy, num_envs, parameters, deterministic)
    return CandidateMirror(policy, layers, num_envs, parameters, deterministic)
