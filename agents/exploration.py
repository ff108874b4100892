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
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy

from agents.mirrors import Mirror, parameters_of, row_affine
from agents.plain_networks import Layers


def can_be_mirrored(policy: ActorCriticPolicy, layers: Layers) -> bool:
    """Whether a gSDE policy draws its matrices as Stable-Baselines3's does, for its last layer."""
    return (
        type(policy).reset_noise is ActorCriticPolicy.reset_noise
        and layers[-1][0] is policy.action_net
        and policy.log_std.dtype == torch.float32
    )


@torch.no_grad()
def reset_noise(policy: ActorCriticPolicy, num_envs: int) -> None:
    """Does what ``policy.reset_noise`` does, in a fifth of the time.

    The generator gives the same numbers; the matrices have no graph.

    Args:
        policy: For which :func:`can_be_mirrored` holds.
        num_envs: Environments, each of which gets a matrix of its own.
    """
    distribution = policy.action_dist
    std = distribution.get_std(policy.log_std)
    distribution.exploration_mat = torch.empty_like(std).normal_().mul_(std)
    distribution.exploration_matrices = std.new_empty(num_envs, *std.shape).normal_().mul_(std)


class ExploringMirror(Mirror):
    """The mirror of a gSDE policy: every row has the last layer W + Eᵀ of its environment.

    The matrices are the policy's own, whoever drew them.
    """

    def _prepare_noise(self, num_steps: int) -> None:
        self.distribution: StateDependentNoiseDistribution = self.policy.action_dist

    def read(self) -> None:
        """Takes the parameters as they are now; the matrices stay until they are drawn again."""
        self.layers = self._layers()
        self._explore()

    def _layers(self) -> list[tuple[Any, ...]]:
        *hidden, (_, activation, output) = super()._layers()
        self.weight, bias = parameters_of(self.linear[-1][0])
        self.weights = np.empty((len(output), *self.weight.shape), np.float32)
        return [*hidden, (row_affine(self.weights, bias, output), activation, output)]

    def _explore(self) -> None:
        distribution = self.distribution
        self.drawn = matrices = distribution.exploration_matrices
        if len(self.weights) == 1 or len(matrices) != len(self.weights):  # as get_noise chooses
            matrices = distribution.exploration_mat.unsqueeze(0)
        np.add(self.weight, matrices.detach().mT.cpu().numpy(), out=self.weights)

    def sample(self, t: int, x: np.ndarray) -> np.ndarray:
        """Samples actions; see :meth:`Mirror.sample`."""
        if self.distribution.exploration_matrices is not self.drawn:
            self._explore()
        self._forward(x)
        return self.finish()

    def _gaussian(self) -> np.ndarray:
        actions = super()._gaussian()
        return np.tanh(actions, out=actions) if self.policy.squash_output else actions
