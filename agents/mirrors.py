"""NumPy twins of small policies: what a rollout acts through.

For a small fully connected policy one output costs 400 µs through torch's modules and 3 µs through
NumPy, so such a policy acts through a mirror of its parameters.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

Activation = Callable[..., np.ndarray]


def _relu(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0, out=out)


ACTIVATIONS: dict[type, Activation | None] = {
    nn.Tanh: np.tanh,
    nn.ReLU: _relu,
    type(None): None,
}

FINISHES = {
    DiagGaussianDistribution: "_gaussian",
    CategoricalDistribution: "_categorical",
    MultiCategoricalDistribution: "_multi_categorical",
    BernoulliDistribution: "_bernoulli",
    StateDependentNoiseDistribution: "_gaussian",
}

MirroredLayers = list[tuple[nn.Linear, Activation | None]]


class Mirror:
    """A NumPy twin of a policy's actor that samples actions.

    Args:
        policy: A policy for which :func:`agents.acting.mirrored_layers` found the layers.
        layers: The linear layers with the activation after each; None after the last.
        num_envs: Rows per call.
        num_steps: Steps whose noise is drawn at once, from torch's generator: a whole rollout's.

    Attributes:
        last: The last layer's output with the noise added, [B, K].
    """

    def __init__(
        self, policy: ActorCriticPolicy, layers: MirroredLayers, num_envs: int, num_steps: int
    ) -> None:
        self.policy = policy
        self.linear = layers
        self.action_shape = (num_envs, *policy.action_space.shape)
        self._allocate(num_envs, [linear.out_features for linear, _ in layers])
        self.noise = self._draw((num_steps, *self.last.shape))
        self.finish = getattr(self, FINISHES[type(policy.action_dist)])
        self.read()

    def _allocate(self, num_envs: int, widths: list[int]) -> None:
        self.outputs = [np.empty((num_envs, width), np.float32) for width in widths]
        self.last = self.outputs[-1]

    def read(self) -> None:
        """Takes the parameters as they are now."""
        self.scaled_noise = self.noise
        if isinstance(self.policy.action_dist, DiagGaussianDistribution):
            self.scaled_noise = self.noise * self.policy.log_std.detach().exp().cpu().numpy()
        self.layers = self._layers()

    def _layers(self) -> list[tuple[Any, ...]]:
        return [
            (_affine(*parameters_of(linear)), activation, output)
            for (linear, activation), output in zip(self.linear, self.outputs, strict=True)
        ]

    def sample(self, t: int, x: np.ndarray) -> np.ndarray:
        """Samples actions.

        Args:
            t: Step within the rollout, which has its noise where that is drawn by steps.
            x: Flat rows [B, D].

        Returns:
            Actions, new at each call: [B, *action_shape], or [B] int64 for a Discrete space.
        """
        self._forward(x)
        self.last += self.scaled_noise[t]
        return self.finish()

    def _forward(self, x: np.ndarray) -> None:
        x = x.astype(np.float32, copy=False)  # one environment's observations come as they are
        for affine, activation, output in self.layers:
            affine(x, output)
            if activation is not None:
                activation(output, output)
            x = output

    def _draw(self, shape: tuple[int, ...]) -> np.ndarray:
        distribution = self.policy.action_dist
        if isinstance(distribution, DiagGaussianDistribution):
            return torch.randn(shape).numpy()
        if isinstance(distribution, BernoulliDistribution):  # logistic
            return torch.logit(torch.rand(shape), eps=1e-7).numpy()
        return torch.empty(shape).exponential_().log_().neg_().numpy()  # Gumbel

    # From the last layer's output with the noise added.

    def _gaussian(self) -> np.ndarray:
        return self.last.reshape(self.action_shape).copy()

    def _categorical(self) -> np.ndarray:
        return self.last.argmax(1)

    def _multi_categorical(self) -> np.ndarray:
        pieces = np.split(self.last, np.cumsum(self.policy.action_dist.action_dims)[:-1], axis=1)
        return np.stack([piece.argmax(1) for piece in pieces], axis=1).reshape(self.action_shape)

    def _bernoulli(self) -> np.ndarray:
        return (self.last > 0).astype(np.int8).reshape(self.action_shape)


class RowMirror(Mirror):
    """The same for one environment and few outputs, in half the time.

    A row is a vector with a 1 at its end for the next layer's bias, and, before the last layer,
    with the step's noise.
    """

    def _allocate(self, num_envs: int, widths: list[int]) -> None:
        inputs = [self.linear[0][0].in_features, *widths[:-1]]
        rows = [np.ones(width + 1, np.float32) for width in inputs]
        rows[-1] = np.ones(inputs[-1] + 1 + widths[-1], np.float32)
        self.rows = rows
        self.first, self.noise_row = rows[0][: inputs[0]], rows[-1][inputs[-1] + 1 :]
        self.last = np.empty((num_envs, widths[-1]), np.float32)
        self.outputs = [row[:width] for row, width in zip(rows[1:], widths, strict=False)]
        self.outputs.append(self.last[0])

    def read(self) -> None:
        """Takes the parameters as they are now."""
        super().read()
        self.noise_rows = self.scaled_noise[:, 0]

    def _layers(self) -> list[tuple[Any, ...]]:
        layers: list[tuple[Any, ...]] = []
        for row, (linear, activation), output in zip(
            self.rows, self.linear, self.outputs, strict=True
        ):
            weight, bias = parameters_of(linear)
            columns = [weight, bias[:, None]]
            if row is self.rows[-1]:
                columns.append(np.eye(len(weight), dtype=np.float32))
            affine = np.asfortranarray(np.concatenate(columns, axis=1)).dot  # a third faster
            layers.append((row, affine, activation, output))
        return layers

    def sample(self, t: int, x: np.ndarray) -> np.ndarray:
        """Samples an action; see :meth:`Mirror.sample`."""
        self.first[...] = x
        self.noise_row[...] = self.noise_rows[t]
        for row, affine, activation, output in self.layers:
            affine(row, output)
            if activation is not None:
                activation(output, output)
        return self.finish()


def parameters_of(linear: nn.Linear) -> tuple[np.ndarray, np.ndarray]:
    """Weight [out, in] and bias [out]."""
    weight = linear.weight.detach().cpu().numpy()
    if linear.bias is None:
        return weight, np.zeros(len(weight), np.float32)
    return weight, linear.bias.detach().cpu().numpy()


def row_affine(
    weights: np.ndarray, biases: np.ndarray | None, output: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], None]:
    """(x, out) ↦ W_b x_b + b_b for every row b; ``out`` is always ``output``."""
    columns = output[:, :, None]

    def affine(x: np.ndarray, out: np.ndarray) -> None:
        np.matmul(weights, x[:, :, None], out=columns)
        if biases is not None:
            out += biases

    return affine


def _affine(weight: np.ndarray, bias: np.ndarray) -> Callable[[np.ndarray, np.ndarray], None]:
    """(x, out) ↦ x Wᵀ + b for matrices x."""
    transposed, bias = weight.T.copy(), bias.copy()

    def affine(x: np.ndarray, out: np.ndarray) -> None:
        np.dot(x, transposed, out)
        out += bias

    return affine
