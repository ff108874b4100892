"""Choosing actions during a rollout.

Only the actor's output is needed to act; values and log-probabilities of the whole rollout are
one batched call after it. For a small fully connected policy even that one output costs 400 µs
through torch's modules and 3 µs through NumPy, so such a policy acts through a mirror of its
parameters. Any other policy acts through its own ``forward``.
"""

from collections.abc import Callable

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from agents.plain_networks import actor_layers

Activation = Callable[..., np.ndarray]


def _relu(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0, out=out)


_ACTIVATIONS: dict[type, Activation | None] = {
    nn.Tanh: np.tanh,
    nn.ReLU: _relu,
    type(None): None,
}


FEW_OUTPUTS = 16  # above, an identity matrix for the noise is more work than adding it

_FINISHES = {
    DiagGaussianDistribution: "_gaussian",
    CategoricalDistribution: "_categorical",
    MultiCategoricalDistribution: "_multi_categorical",
    BernoulliDistribution: "_bernoulli",
}


class Mirror:
    """A NumPy twin of a policy's actor that samples actions.

    Args:
        policy: A policy for which :func:`mirrored_layers` found the layers.
        layers: The linear layers with the activation after each; None after the last.
        num_envs: Rows per call.
        num_steps: Calls per rollout: the noise of a whole rollout is drawn at once, from torch's
            generator.
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        layers: list[tuple[nn.Linear, Activation | None]],
        num_envs: int,
        num_steps: int,
    ) -> None:
        self.policy = policy
        self.linear = layers
        self.action_shape = (num_envs, *policy.action_space.shape)
        widths = [layers[0][0].in_features, *(linear.out_features for linear, _ in layers)]
        self.single = num_envs == 1
        self.noise_in_row = self.single and widths[-1] <= FEW_OUTPUTS
        if self.single:
            # A row is a vector with a 1 at its end for the next layer's bias, and, before the last
            # layer, with the step's noise: half of the time that matrices of one row take.
            extra = [1] * len(widths)
            extra[-2] += widths[-1] if self.noise_in_row else 0
            buffers = [np.ones(w + e, np.float32) for w, e in zip(widths, extra, strict=True)]
            self.row, self.noise_row = buffers[0][None, : widths[0]], buffers[-2][widths[-2] + 1 :]
            self.last = buffers[-1][None, :-1]
        else:
            buffers = [np.empty((num_envs, width), np.float32) for width in widths]
            self.last = buffers[-1]
        self.first, *self.buffers = buffers
        self.noise = self._draw((num_steps, *self.last.shape))
        self.finish = getattr(self, _FINISHES[type(policy.action_dist)])
        self.read()

    def read(self) -> None:
        """Takes the parameters as they are now."""
        self.layers = []
        for (linear, activation), buffer in zip(self.linear, self.buffers, strict=True):
            weight = linear.weight.detach().cpu().numpy()
            bias = np.zeros(len(weight), np.float32)
            if linear.bias is not None:
                bias = linear.bias.detach().cpu().numpy()
            if self.single:
                columns = [weight, bias[:, None]]
                if buffer is self.buffers[-1] and self.noise_in_row:
                    columns.append(np.eye(len(weight), dtype=np.float32))
                affine = np.asfortranarray(np.concatenate(columns, axis=1)).dot  # a third faster
                self.layers.append((affine, activation, buffer[: len(weight)], buffer))
            else:
                self.layers.append((_affine(weight, bias), activation, buffer, buffer))
        self.scaled_noise = self.noise
        if isinstance(self.policy.action_dist, DiagGaussianDistribution):
            self.scaled_noise = self.noise * self.policy.log_std.detach().exp().cpu().numpy()

    def _draw(self, shape: tuple[int, ...]) -> np.ndarray:
        distribution = self.policy.action_dist
        if isinstance(distribution, DiagGaussianDistribution):
            return torch.randn(shape).numpy()
        if isinstance(distribution, BernoulliDistribution):  # logistic
            return torch.logit(torch.rand(shape), eps=1e-7).numpy()
        return torch.empty(shape).exponential_().log_().neg_().numpy()  # Gumbel

    def sample(self, t: int, x: np.ndarray) -> np.ndarray:
        """Samples actions.

        Args:
            t: Step within the rollout: which of the pre-drawn noise to use.
            x: Flat rows [B, D].

        Returns:
            Actions, new at each call: [B, *action_shape], or [B] int64 for a Discrete space.
        """
        if self.single:
            self.row[...] = x
            x = self.first
        if self.noise_in_row:
            self.noise_row[...] = self.scaled_noise[t, 0]
        for affine, activation, out, following in self.layers:
            affine(x, out)
            if activation is not None:
                activation(out, out)
            x = following
        if not self.noise_in_row:
            self.last += self.scaled_noise[t]
        return self.finish()

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


def _affine(weight: np.ndarray, bias: np.ndarray) -> Callable[[np.ndarray, np.ndarray], None]:
    """(x, out) ↦ x Wᵀ + b for matrices x."""
    transposed, bias = weight.T.copy(), bias.copy()

    def affine(x: np.ndarray, out: np.ndarray) -> None:
        np.dot(x, transposed, out)
        out += bias

    return affine


def mirrored_layers(
    policy: ActorCriticPolicy, space: spaces.Space
) -> list[tuple[nn.Linear, Activation | None]] | None:
    """Finds the actor's layers, if the policy is one that the mirror reproduces exactly.

    Args:
        policy: Any policy.
        space: Its observation space.

    Returns:
        The linear layers with their activations; None where an overridden method, a hook, gSDE,
        another feature extractor or an unknown layer could make the policy act differently.
    """
    layers = actor_layers(policy, space)
    if layers is None or policy.squash_output or type(policy.action_dist) not in _FINISHES:
        return None
    found: list[tuple[nn.Linear, Activation | None]] = []
    for linear, activation in layers:
        if linear.weight.dtype != torch.float32 or type(activation) not in _ACTIVATIONS:
            return None
        found.append((linear, _ACTIVATIONS[type(activation)]))
    return found
