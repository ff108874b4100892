"""Minibatch gradients of a fully connected value network, written by hand.

A rollout has hundreds of minibatches, and at the usual 128 rows autograd's bookkeeping would be
most of their cost. The loss is L = mean (v − R)², so that δ = 2 (v − R) / B.
"""

from collections.abc import Iterator

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from agents.backpropagation import Backpropagation, can_be_written_by_hand
from agents.plain_networks import Layers, critic_layers, plain_features
from agents.rollout import Batch
from agents.shuffling import shuffled
from npg import ranks


class ValueMinibatches:
    """Losses of minibatches, whose gradients it leaves in the parameters' ``grad``.

    The tensors there are used again by the next minibatch: what keeps one has to copy it.

    Args:
        layers: What :func:`hand_written` found.
        features: The rollout's, [N, D].
        returns: Targets, [N].
        batch_size: Rows per minibatch, of all ranks; the last of an epoch may have fewer.
        num_envs: Environments that the rows are of, step by step.
    """

    def __init__(
        self,
        layers: Layers,
        features: Tensor,
        returns: Tensor,
        batch_size: int,
        num_envs: int = 1,
    ) -> None:
        self.features = features
        self.returns = returns.unsqueeze(1)
        self.batch_size = batch_size
        self.num_envs = num_envs
        self.network = Backpropagation(layers, min(batch_size, len(features)))

    def epoch(self) -> Iterator[float]:
        """Yields the loss of every minibatch of a random order, with its gradients in place."""
        order = torch.randperm(len(self.returns) * ranks.count()).to(self.returns.device)
        rows, sizes, shares = shuffled(order, self.num_envs, self.batch_size)
        pieces = (column[rows].split(sizes) for column in (self.features, self.returns))
        for x, y, share in zip(*pieces, shares, strict=True):
            yield self._differentiate(x, y, share)

    @torch.no_grad()
    def _differentiate(self, x: Tensor, y: Tensor, share: float) -> float:
        delta = self.network.forward(x).sub_(y)
        flat = delta.view(-1)
        loss = torch.dot(flat, flat) / len(x)
        self.network.backward(delta.mul_(2 / len(x)))
        if ranks.count() > 1:
            ranks.average_([*self.network.gradients, loss], share)
        return float(loss)


def hand_written(
    policy: ActorCriticPolicy, batch: Batch, batch_size: int
) -> ValueMinibatches | None:
    """Returns the minibatches of a plain value network, or None if it is another."""
    layers = critic_layers(policy, policy.observation_space)
    if layers is None or not can_be_written_by_hand(layers):
        return None
    features = plain_features(policy, batch.observations)
    return ValueMinibatches(layers, features, batch.returns, batch_size, batch.num_envs)
