"""Generalised State-Dependent Exploration (gSDE): noise that is a function of the state.

An action is μ(s) + Eᵀφ(s), with φ the actor's last hidden layer. The matrix E is drawn anew every
few steps only, and so is the same function for several of them: exploration that is smooth in time.
With μ(s) = W φ(s) + b it is a change of the last layer's weights, W + Eᵀ.

Reference:
    Raffin et al., "Smooth exploration for robotic reinforcement learning", 2021.
"""

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.distributions import TanhBijector
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Normal

from agents.mirrors import Mirror, MirroredLayers, parameters_of, row_affine
from agents.plain_networks import Layers


def can_be_mirrored(policy: ActorCriticPolicy, layers: Layers) -> bool:
    """Whether a gSDE policy draws and applies its matrices as Stable-Baselines3's does."""
    distribution = policy.action_dist
    bijector = distribution.bijector
    return (
        type(policy).reset_noise is ActorCriticPolicy.reset_noise
        and not _patched(distribution)
        and (bijector is None or (type(bijector) is TanhBijector and not _patched(bijector)))
        and layers[-1][0] is policy.action_net
        and policy.log_std.dtype == torch.float32
    )


def _patched(instance: object) -> bool:
    return any(map(callable, vars(instance).values()))


@torch.no_grad()
def reset_noise(policy: ActorCriticPolicy, num_envs: int) -> None:
    """Draws what ``policy.reset_noise`` draws, in less than half the time.

    The generator gives the same numbers. What is left in the policy's distribution is the same but
    for two things: it has no graph, and deviations that are not positive are not refused here.

    Args:
        policy: For which :func:`can_be_mirrored` holds.
        num_envs: Environments, each of which gets a matrix of its own.
    """
    distribution = policy.action_dist
    std = distribution.get_std(policy.log_std)
    distribution.weights_dist = Normal(torch.zeros_like(std), std, validate_args=False)
    distribution.exploration_mat = torch.empty_like(std).normal_().mul_(std)
    distribution.exploration_matrices = std.new_empty(num_envs, *std.shape).normal_().mul_(std)


class ExploringMirror(Mirror):
    """The mirror of a gSDE policy: every row has the last layer W + Eᵀ of its environment.

    It draws nothing: the matrices are the policy's own, whoever drew or changed them. Only writing
    through ``data``, or to a matrix that was made in inference mode, leaves no trace to notice.

    Args:
        policy: A policy for which :func:`agents.acting.mirrored_layers` found the layers.
        layers: These.
        num_envs: Rows per call.
    """

    def __init__(self, policy: ActorCriticPolicy, layers: MirroredLayers, num_envs: int) -> None:
        super().__init__(policy, layers, num_envs, num_steps=0)  # no noise is drawn before

    def _allocate(self, num_envs: int, widths: list[int]) -> None:
        super()._allocate(num_envs, widths)
        features = self.linear[-1][0].in_features
        self.weights = np.empty((num_envs, widths[-1], features), np.float32)  # W + Eᵀ

    def read(self) -> None:
        """Takes the parameters and the matrices as they are now."""
        super().read()
        self.weight = parameters_of(self.linear[-1][0])[0].copy()
        self._explore()

    def _layers(self) -> list[tuple[Any, ...]]:
        *hidden, (_, activation, output) = super()._layers()
        bias = parameters_of(self.linear[-1][0])[1].copy()
        return [*hidden, (row_affine(self.weights, bias, output), activation, output)]

    def _explore(self) -> None:
        distribution = self.policy.action_dist
        self.one, self.several = distribution.exploration_mat, distribution.exploration_matrices
        self.versions = _version(self.one), _version(self.several)
        shared = len(self.weights) == 1 or len(self.several) != len(self.weights)
        matrices = self.one if shared else self.several  # as get_noise chooses
        np.add(self.weight, matrices.detach().mT.cpu().numpy(), out=self.weights)

    def _changed(self) -> bool:
        """Whether a matrix was drawn, replaced or written to since they were taken."""
        distribution = self.policy.action_dist
        return (
            distribution.exploration_matrices is not self.several
            or distribution.exploration_mat is not self.one
            or (_version(self.one), _version(self.several)) != self.versions
        )

    def sample(self, t: int, x: np.ndarray) -> np.ndarray:
        """Samples actions; see :meth:`Mirror.sample`. No noise belongs to a step ``t``."""
        if self._changed():
            self._explore()
        self._forward(x)
        return self.finish()

    def _gaussian(self) -> np.ndarray:
        actions = super()._gaussian()
        squashed = self.policy.action_dist.bijector is not None
        return np.tanh(actions, out=actions) if squashed else actions


def _version(tensor: torch.Tensor) -> int | None:
    """How often it was written to; inference tensors do not count."""
    return None if tensor.is_inference() else tensor._version
