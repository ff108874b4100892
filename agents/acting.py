"""Choosing actions during a rollout.

Only the actor's output is needed to act; values and log-probabilities of the whole rollout are one
batched call after it. For a small fully connected policy even that one output costs 400 µs through
torch's modules and 10 µs through NumPy, so such a policy acts through a mirror that reads the
parameters' own memory. Any other policy acts through its own ``forward``.
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
from stable_baselines3.common.torch_layers import (
    CombinedExtractor,
    FlattenExtractor,
    MlpExtractor,
)
from torch import nn

Layer = tuple[np.ndarray, np.ndarray | None]
Activation = Callable[..., np.ndarray]

# What a subclass may override without the mirror noticing: then the policy itself must act.
_METHODS = (
    "forward",
    "_predict",
    "predict_values",
    "get_distribution",
    "evaluate_actions",
    "extract_features",
    "_get_action_dist_from_latent",
    "set_training_mode",
)


def _relu(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0, out=out)


_ACTIVATIONS: dict[type[nn.Module], Activation] = {nn.Tanh: np.tanh, nn.ReLU: _relu}


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
        space = policy.observation_space
        self.keys = list(space.spaces) if isinstance(space, spaces.Dict) else []
        # One environment's row is a vector: a third of the time that a matrix of one row takes.
        self.rows = () if num_envs == 1 else (num_envs,)
        self.action_shape = (num_envs, *policy.action_space.shape)
        self.buffers = [
            np.empty((*self.rows, linear.out_features), dtype=np.float32) for linear, _ in layers
        ]
        self.read()
        self.noise = self._draw(num_steps)

    def read(self) -> None:
        """Takes views of the parameters' memory (copies, where that is not the CPU's)."""
        self.layers = [
            (
                self._multiplication(linear.weight.detach().cpu().numpy()),
                None if linear.bias is None else linear.bias.detach().cpu().numpy(),
                activation,
                buffer,
            )
            for (linear, activation), buffer in zip(self.linear, self.buffers, strict=True)
        ]
        if isinstance(self.policy.action_dist, DiagGaussianDistribution):
            self.log_std = self.policy.log_std.detach().cpu().numpy()

    def _multiplication(self, weight: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """(x, out) ↦ x Wᵀ."""
        if not self.rows:
            return weight.dot
        transposed = weight.T
        return lambda x, out: np.dot(x, transposed, out)

    def _draw(self, steps: int) -> np.ndarray:
        shape = (steps, *self.rows, self.linear[-1][0].out_features)
        distribution = self.policy.action_dist
        if isinstance(distribution, DiagGaussianDistribution):
            return torch.randn(shape).numpy()
        if isinstance(distribution, BernoulliDistribution):  # logistic
            return torch.logit(torch.rand(shape), eps=1e-7).numpy()
        return torch.empty(shape).exponential_().log_().neg_().numpy()  # Gumbel

    def output(self, observations: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
        """The actor's last layer [B, K] ([K] for B = 1); reused by the next call."""
        if isinstance(observations, dict):
            columns = [observations[key].reshape(*self.rows, -1) for key in self.keys]
            x = np.concatenate(columns, axis=-1, dtype=np.float32)
        else:
            x = observations.reshape(*self.rows, -1).astype(np.float32, copy=False)
        for multiply, bias, activation, buffer in self.layers:
            x = multiply(x, buffer)
            if bias is not None:
                x += bias
            if activation is not None:
                activation(x, x)
        return x

    def sample(self, t: int, observations: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
        """Samples actions.

        Args:
            t: Step within the rollout: which of the pre-drawn noise to use.
            observations: [B, ...], or a dictionary of such.

        Returns:
            Actions, new at each call: [B, *action_shape], or [B] int64 for a Discrete space.
        """
        output = self.output(observations)
        noise = self.noise[t]
        distribution = self.policy.action_dist
        if isinstance(distribution, DiagGaussianDistribution):
            action = np.exp(self.log_std) * noise
            action += output
        else:
            output += noise
            if isinstance(distribution, CategoricalDistribution):
                action = output.argmax(-1)
            elif isinstance(distribution, MultiCategoricalDistribution):
                pieces = np.split(output, np.cumsum(distribution.action_dims)[:-1], axis=-1)
                action = np.stack([piece.argmax(-1) for piece in pieces], axis=-1)
            else:
                action = (output > 0).astype(np.int8)
        return action.reshape(self.action_shape)


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
    plain = (
        isinstance(policy, ActorCriticPolicy)
        and all(getattr(type(policy), m) is getattr(ActorCriticPolicy, m) for m in _METHODS)
        and not policy.squash_output
        and _plain_features(policy.pi_features_extractor, space)
        and type(policy.mlp_extractor) is MlpExtractor
        and type(policy.action_dist)
        in (
            DiagGaussianDistribution,
            CategoricalDistribution,
            MultiCategoricalDistribution,
            BernoulliDistribution,
        )
    )
    if not plain or any(_altered(module) for module in policy.modules()):
        return None
    layers: list[tuple[nn.Linear, Activation | None]] = []
    for module in [*policy.mlp_extractor.policy_net, policy.action_net]:
        if type(module) is nn.Linear and module.weight.dtype == torch.float32:
            layers.append((module, None))
        elif type(module) in _ACTIVATIONS and layers and layers[-1][1] is None:
            layers[-1] = (layers[-1][0], _ACTIVATIONS[type(module)])
        else:
            return None
    return layers


def _plain_features(extractor: nn.Module, space: spaces.Space) -> bool:
    """Whether the features are the observations themselves, flattened and side by side."""
    if isinstance(space, spaces.Dict):
        return type(extractor) is CombinedExtractor and all(
            _is_vector(inner) and type(extractor.extractors[key]) is nn.Flatten
            for key, inner in space.spaces.items()
        )
    return type(extractor) is FlattenExtractor and _is_vector(space)


def _is_vector(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)


def _altered(module: nn.Module) -> bool:
    """Whether a hook, a patched method or a parametrisation could change what a module does."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or hasattr(module, "parametrizations")
        or any(
            callable(v) and callable(getattr(type(module), k, 0)) for k, v in vars(module).items()
        )
    )
