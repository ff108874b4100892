"""Optimizers of ``npg.optim`` by name, for agents that give them gradients."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from npg.errors import ConfigurationError
from npg.optim import create, names


def protocol_of(optimizer: torch.optim.Optimizer) -> str:
    """How an optimizer is driven; torch's own take gradients."""
    return getattr(optimizer, "protocol", "gradient")


def check_name(optimizer: str | None) -> None:
    """Refuses a name that no optimizer has."""
    if optimizer is not None and optimizer not in names():
        raise ConfigurationError(
            f"optimizer must be None or one of {', '.join(names())}, got {optimizer!r}"
        )


def fed_with_gradients(
    name: str, model: nn.Module | Iterable[dict[str, Any]], lr: float | None = None
) -> torch.optim.Optimizer:
    """Makes an optimizer that needs nothing but gradients, or their graph.

    Args:
        name: One of ``npg.optim.names()``.
        model: Policy, or groups of parameters, which have their own rates.
        lr: Learning rate.

    Returns:
        The optimizer.

    Raises:
        ConfigurationError: If it needs something else.
    """
    chosen = create(name, model, lr=lr)
    if protocol_of(chosen) == "function":
        raise ConfigurationError(
            f"optimizer={name!r} evaluates its objective by itself instead of "
            "taking a gradient: agents.TRPO and agents.NPG drive such a one; here, leave "
            "optimizer=None or name one that takes gradients"
        )
    if hasattr(chosen, "observe"):
        raise ConfigurationError(
            f"optimizer={name!r} has to be told of predictions, a policy's and "
            "a critic's: agents.ACKTR tells such a one; here, leave optimizer=None or name "
            'another that takes gradients ("sophia-h" is the same step on another estimate)'
        )
    return chosen


def fed_with_directions(name: str, groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
    """Makes an optimizer that takes the directions of evolution strategies for gradients.

    Args:
        name: One of ``npg.optim.names()``.
        groups: Groups of parameters, which have their own rates.

    Returns:
        The optimizer.

    Raises:
        ConfigurationError: If it needs something else.
    """
    chosen = _of_gradients_alone(name, groups)
    if chosen is None:
        reason = "needs more than gradients, or divides parameters itself" * (name in names())
        fitting = [other for other in names() if _of_gradients_alone(other, _one_matrix())]
        raise ConfigurationError(
            f"optimizer={name!r} {reason or 'is none there is'}: evolution strategies take None or "
            f"one of {', '.join(fitting)}. Agents with the policy's curvature are agents.TRPO, "
            "agents.NPG and agents.ACKTR"
        )
    return chosen


def _one_matrix() -> list[dict[str, Any]]:
    return [{"params": [torch.zeros(2, 2, requires_grad=True)]}]


def _of_gradients_alone(
    name: str, groups: Iterable[dict[str, Any]]
) -> torch.optim.Optimizer | None:
    try:
        chosen = create(name, groups)
    except ConfigurationError:  # it wants the module
        return None
    alone = protocol_of(chosen) == "gradient" and not hasattr(chosen, "observe")
    return chosen if alone else None
