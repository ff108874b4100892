"""The rollout: what one phase of acting leaves behind for one update."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples
from torch import Tensor

from agents.advantages import generalised_advantages
from npg import ranks

Observations = Tensor | dict[str, Tensor]


class Batch(NamedTuple):
    """All samples of a rollout, on the policy's device.

    Attributes:
        observations: [N, ...] as the policy saw them, or a dictionary of such.
        actions: [N, A], or [N] for a Discrete space.
        log_probs: log π(a|s) of the acting policy, [N].
        advantages: [N], not normalised.
        returns: λ-returns, the critic's targets, [N].
        values: V(s) of the critic during the rollout, [N].
        num_envs: Environments that took these steps; N is a multiple of it, unless the samples are
            a minibatch.
        share: Share of these among the samples of all ranks, times the number of ranks.
    """

    observations: Observations
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    values: Tensor
    num_envs: int = 1
    share: float = 1.0


class _TimeLimits:
    """Advantages for a buffer [T, B] that remembers where time limits cut an episode."""

    def reset(self) -> None:
        """Empties the buffer; its arrays are kept, and overwritten by the next rollout."""
        if not hasattr(self, "bootstrap") or self.generator_ready:  # `get` reshapes the arrays
            super().reset()  # type: ignore[misc]
            self.bootstrap = np.zeros_like(self.values)
        self.bootstrap.fill(0)
        self.pos, self.full, self.generator_ready = 0, False, False

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Fills ``advantages`` and ``returns`` for the steps that were taken.

        Args:
            last_values: V of the observations after the last step, [B] or [B, 1].
            dones: Whether the last step ended an episode, [B].
        """
        self: Any
        steps = self.pos
        ended = np.concatenate([self.episode_starts[1:steps], dones[None]]).astype(bool)
        after_last = last_values.detach().cpu().numpy().reshape(1, -1)
        following = np.concatenate([self.values[1:steps], after_last])
        next_values = np.where(ended, self.bootstrap[:steps], following)
        self.advantages[:steps] = generalised_advantages(
            self.rewards[:steps],
            self.values[:steps],
            next_values,
            ended,
            self.gamma,
            self.gae_lambda,
        )
        self.returns[:steps] = self.advantages[:steps] + self.values[:steps]


class Rollout(_TimeLimits, RolloutBuffer):
    """SB3's rollout buffer; observations are stored once, in the policy's precision."""

    def reset(self) -> None:
        """Empties the buffer."""
        super().reset()
        if self.observations.dtype == np.float64:
            self.observations = self.observations.astype(np.float32)


class DictRollout(_TimeLimits, DictRolloutBuffer):
    """The same for dictionaries of observations."""


def row_setter(
    rollout: Rollout | DictRollout,
) -> Callable[[int, np.ndarray | dict[str, np.ndarray]], np.ndarray]:
    """Returns a function (t, observation) that stores one step's observations.

    The function gives back what it stored as flat rows [B, D]; of a dictionary, its columns side
    by side.
    """

    def flat(column: np.ndarray) -> np.ndarray:
        return column.reshape(len(column), rollout.n_envs, -1)

    if isinstance(rollout, DictRollout):
        columns = {key: (column, flat(column)) for key, column in rollout.observations.items()}

        def store_all(t: int, observation: dict[str, np.ndarray]) -> np.ndarray:
            for key, (column, _) in columns.items():
                column[t] = observation[key].reshape(column.shape[1:])
            parts = [flattened[t] for _, flattened in columns.values()]
            return np.concatenate(parts, axis=-1, dtype=np.float32, casting="unsafe")

        return store_all
    column, flattened = rollout.observations, flat(rollout.observations)
    if column.shape[2:] == rollout.observation_space.shape:
        is_row = rollout.n_envs == 1 and column.ndim == 3  # the mirror casts it where it copies it

        def store(t: int, observation: np.ndarray) -> np.ndarray:
            column[t] = observation
            return observation if is_row else flattened[t]

        return store

    def store_reshaped(t: int, observation: np.ndarray) -> np.ndarray:  # Discrete: [B] to [B, 1]
        column[t] = observation.reshape(column.shape[1:])
        return flattened[t]

    return store_reshaped


def flat_observations(
    rollout: Rollout | DictRollout, start: int, stop: int, device: torch.device
) -> Observations:
    """Returns the observations of some steps as [steps · B, ...], without a copy on CPU."""

    def flat(column: np.ndarray) -> Tensor:
        return torch.as_tensor(column[start:stop].reshape(-1, *column.shape[2:]), device=device)

    if isinstance(rollout, DictRollout):
        return {key: flat(column) for key, column in rollout.observations.items()}
    return flat(rollout.observations)


def flat_actions(
    rollout: Rollout | DictRollout,
    start: int,
    stop: int,
    space: spaces.Space,
    device: torch.device,
) -> Tensor:
    """Returns the actions of some steps as the policy's distribution takes them."""
    actions = rollout.actions[start:stop].reshape(-1, rollout.action_dim)
    if isinstance(space, spaces.Discrete):
        return torch.as_tensor(actions[:, 0], device=device).long()
    return torch.as_tensor(actions, device=device, dtype=torch.float32)


def batch(rollout: RolloutBuffer, space: spaces.Space, device: torch.device) -> Batch:
    """Gathers a rollout's samples.

    Another buffer class than ours is read by its ``get``; so is ours where a callback called it
    already, because that puts the arrays into another order.

    Args:
        rollout: A full buffer.
        space: The action space.
        device: Where the policy is.

    Returns:
        All samples.
    """
    if not isinstance(rollout, (Rollout, DictRollout)) or rollout.generator_ready:
        samples = converted(next(iter(rollout.get(batch_size=None))), space)
        return samples._replace(num_envs=rollout.n_envs)

    def column(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values[: rollout.pos].reshape(-1), device=device)

    return Batch(
        flat_observations(rollout, 0, rollout.pos, device),
        flat_actions(rollout, 0, rollout.pos, space, device),
        column(rollout.log_probs),
        column(rollout.advantages),
        column(rollout.returns),
        column(rollout.values),
        rollout.n_envs,
    )


def converted(
    samples: RolloutBufferSamples | DictRolloutBufferSamples, space: spaces.Space
) -> Batch:
    """Makes a batch of what a buffer's ``get`` yielded."""
    actions = samples.actions
    if isinstance(space, spaces.Discrete):
        actions = actions.long().flatten()
    return Batch(
        samples.observations,
        actions,
        samples.old_log_prob.flatten(),
        samples.advantages.flatten(),
        samples.returns.flatten(),
        samples.old_values.flatten(),
    )


def standardised(advantages: Tensor, share: float = 1.0) -> Tensor:
    """Advantages of mean 0 and deviation 1 over all ranks, as Stable-Baselines3 makes them.

    Args:
        advantages: Of this rank, [N].
        share: As in :class:`Batch`; where it is 0, they do not count.

    Returns:
        The same, moved and scaled; as they were where there is only one.
    """
    if ranks.count() == 1:
        if len(advantages) == 1:
            return advantages
        return (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    exact = advantages.double()
    counted = exact if share else exact[:0]
    sums = [counted.sum(), counted.square().sum(), exact.new_tensor(len(counted))]
    total, squares, count = ranks.summed(torch.stack(sums)).tolist()
    if count == 1:
        return advantages
    mean = total / count
    variance = max(0.0, squares - count * mean**2) / (count - 1)
    return ((exact - mean) / (math.sqrt(variance) + 1e-8)).to(advantages)
