"""Integrated gradients of a policy's decisions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from explanation.episodes import Coordinates, Episodes, tensors
from npg.errors import ConfigurationError

Baseline = Literal["mean", "zeros"]
ROWS = 16_384  # of observations in one pass


@dataclass
class Explanation:
    """Attributions, and what they attribute.

    Attributes:
        attributions: Part of the decision's change that a coordinate has [T, decisions, D].
        decisions: What is explained [T, decisions]: components of the mean action, or the
            logarithm of the chosen action's probability.
        changes: Decisions minus those at the baseline [T, decisions].
        names: Of the decisions.
        baseline: Observation where the paths begin [D].
    """

    attributions: np.ndarray
    decisions: np.ndarray
    changes: np.ndarray
    names: list[str]
    baseline: np.ndarray

    def gap(self) -> float:
        """The largest |sum of attributions − change|; the exact integral has 0."""
        return float(np.abs(self.attributions.sum(2) - self.changes).max())

    def relative_gap(self) -> float:
        """The gap as a part of the largest change."""
        return self.gap() / max(float(np.abs(self.changes).max()), 1e-12)

    def importance(self) -> np.ndarray:
        """Mean over time of |attribution|, each decision in its own unit [decisions, D]."""
        return np.abs(self.attributions).mean(0)

    def order(self) -> np.ndarray:
        """The coordinates, the most important one first."""
        return np.argsort(-self.importance().sum(0), kind="stable")


def explain(
    policy: ActorCriticPolicy,
    played: Episodes,
    coordinates: Coordinates,
    baseline: Baseline = "mean",
    steps: int = 64,
    action_names: Sequence[str] | None = None,
    on_part: Callable[[int, int], None] = lambda done, of: None,
) -> Explanation:
    """Attributes every decision of some episodes to the coordinates of its observation.

    Args:
        policy: Whose decisions.
        played: The episodes.
        coordinates: Of its observations.
        baseline: Where the paths of integration begin: at the mean observation of the episodes, or
            at zeros, which is the mean of the training where observations are normalised.
        steps: Nodes of the integral.
        action_names: Names of the components of an action. Default: a0, a1, …
        on_part: Called with what is done, and how much there is.

    Returns:
        The attributions.

    Raises:
        ConfigurationError: If captum is not installed, or the names are too few or too many.

    Reference:
        Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", 2017.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise ConfigurationError(
            f"integrated gradients need captum ({error}): pip install .[explain]"
        ) from error
    policy.set_training_mode(False)
    observations, actions = tensors(played, policy)
    start = observations.mean(0) if baseline == "mean" else torch.zeros_like(observations[0])

    def decide(flat: Tensor, chosen: Tensor) -> Tensor:
        return _decisions(policy, coordinates.shaped(flat), chosen)

    with torch.no_grad():
        decisions = decide(observations, actions)
        changes = decisions - decide(start.expand_as(observations), actions)
    number = decisions.shape[1]
    names = _named(policy.action_space, number, action_names)
    integrated = IntegratedGradients(decide)
    parts = torch.arange(len(observations)).split(max(1, ROWS // steps))
    attributions = torch.empty(len(observations), number, observations.shape[1])
    for i, rows in enumerate(parts):
        for target in range(number):
            attributions[rows, target] = integrated.attribute(
                observations[rows],
                start.unsqueeze(0),
                target=target,
                additional_forward_args=(actions[rows],),
                n_steps=steps,
            ).float().cpu()  # fmt: skip
            on_part(i * number + target + 1, len(parts) * number)
    return Explanation(
        attributions.numpy(),
        decisions.cpu().numpy(),
        changes.cpu().numpy(),
        names,
        start.cpu().numpy(),
    )


def _named(space: spaces.Space, number: int, given: Sequence[str] | None) -> list[str]:
    continuous = isinstance(space, spaces.Box)
    names = list(given or ([f"a{i}" for i in range(number)] if continuous else ["log π(a|s)"]))
    if len(names) != number:
        raise ConfigurationError(f"there are {number} decisions, and {len(names)} names for them")
    return names


def _decisions(policy: ActorCriticPolicy, observation: object, actions: Tensor) -> Tensor:
    """Returns the most probable action [N, components], or log π(action) [N, 1]."""
    distribution = policy.get_distribution(observation)  # type: ignore[arg-type]
    if isinstance(policy.action_space, spaces.Box):
        return distribution.mode().flatten(1)
    return distribution.log_prob(actions).unsqueeze(1)
