"""Passes over a rollout in small random pieces."""

from collections.abc import Iterator

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from agents.predictions import take
from agents.rollout import Batch, DictRollout, Rollout, batch, converted


class Minibatches:
    """Minibatches of a rollout, the same as Stable-Baselines3's under the same NumPy seed.

    A buffer of another class than ours is read by its ``get`` in every epoch, and so is ours where
    a callback called it already, because that puts the arrays into another order.

    Args:
        rollout: A full buffer.
        space: The action space.
        device: Where the policy is.
        batch_size: Samples per minibatch; the last of an epoch may have fewer.
    """

    def __init__(
        self, rollout: RolloutBuffer, space: spaces.Space, device: torch.device, batch_size: int
    ) -> None:
        self.rollout, self.space, self.batch_size = rollout, space, batch_size
        ours = isinstance(rollout, (Rollout, DictRollout)) and not rollout.generator_ready
        self.samples = batch(rollout, space, device) if ours else None

    def epoch(self) -> Iterator[Batch]:
        """Yields the minibatches of a random order, every sample once."""
        if self.samples is None:
            for samples in self.rollout.get(self.batch_size):
                yield converted(samples, self.space)
            return
        observations, *columns = self.samples
        order = self._order().to(columns[0].device)
        # Observations may be images: a second rollout of them need not fit.
        pieces = (column[order].split(self.batch_size) for column in columns)
        for rows, *rest in zip(order.split(self.batch_size), *pieces, strict=True):
            yield Batch(take(observations, rows), *rest)

    def _order(self) -> torch.Tensor:
        """A permutation of samples that lie step by step, where that buffer's lie env by env."""
        steps, envs = self.rollout.pos, self.rollout.n_envs
        drawn = np.random.permutation(steps * envs)  # noqa: NPY002 - the generator that it draws from
        return torch.from_numpy(drawn % steps * envs + drawn // steps)
