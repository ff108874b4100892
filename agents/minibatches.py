"""Passes over a rollout in small random pieces."""

from collections.abc import Iterator

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from agents.predictions import take
from agents.rollout import Batch, DictRollout, Rollout, batch, converted
from agents.shuffling import shuffled
from npg import ranks


class Minibatches:
    """Minibatches of a rollout, the same as Stable-Baselines3's under the same NumPy seed.

    A buffer of another class than ours is read by its ``get`` in every epoch, and so is ours where
    a callback called it already, because that puts the arrays into another order.

    Args:
        rollout: A full buffer.
        space: The action space.
        device: Where the policy is.
        batch_size: Samples per minibatch, of all ranks together; the last of an epoch may have
            fewer.
    """

    def __init__(
        self, rollout: RolloutBuffer, space: spaces.Space, device: torch.device, batch_size: int
    ) -> None:
        self.rollout, self.space, self.batch_size = rollout, space, batch_size
        ours = isinstance(rollout, (Rollout, DictRollout)) and not rollout.generator_ready
        ours = not ranks.any_rank(not ours)  # a callback may have looked at one of them
        self.samples = batch(rollout, space, device) if ours else None

    def epoch(self) -> Iterator[Batch]:
        """Yields the minibatches of a random order, every sample once."""
        if self.samples is None:
            for samples in self.rollout.get(max(1, self.batch_size // ranks.count())):
                yield converted(samples, self.space)
            return
        observations, *columns, num_envs, _ = self.samples
        order = self._order().to(self.samples.returns.device)
        rows, sizes, shares = shuffled(order, num_envs, self.batch_size)
        # Observations may be images: a second rollout of them need not fit.
        pieces = (column[rows].split(sizes) for column in columns)
        for share, own, *rest in zip(shares, rows.split(sizes), *pieces, strict=True):
            yield Batch(take(observations, own), *rest, share=share)

    def _order(self) -> torch.Tensor:
        """A permutation of samples that lie step by step, where that buffer's lie env by env."""
        steps, envs = self.rollout.pos, self.rollout.n_envs * ranks.count()
        drawn = np.random.permutation(steps * envs)  # noqa: NPY002 - the generator that it draws from
        return torch.from_numpy(drawn % steps * envs + drawn // steps)
