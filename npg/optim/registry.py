"""Optimizers by name, and one way to drive any of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.optim.base import FunctionOptimizer, Prediction
from npg.optim.natural_gradient import NaturalGradient
from npg.optim.newton_cg import NewtonCG

_CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "natural-gradient": NaturalGradient,
    "newton-cg": NewtonCG,
}


def names() -> list[str]:
    """Returns the names that :func:`create` knows."""
    return sorted(_CLASSES)


def create(
    name: str, model: nn.Module, lr: float | None = None, **options: Any
) -> torch.optim.Optimizer:
    """Makes an optimizer by name.

    Args:
        name: One of :func:`names`.
        model: Module to train.
        lr: Learning rate. Default: the optimizer's own.
        **options: Further arguments of the optimizer's class.

    Returns:
        The optimizer.

    Raises:
        ConfigurationError: If no optimizer has this name.
    """
    if name not in _CLASSES:
        raise ConfigurationError(f"no optimizer is named {name!r}; there are {', '.join(names())}")
    if lr is not None:
        options["lr"] = lr
    return _CLASSES[name](model, **options)  # type: ignore[arg-type]


def train_step(
    optimizer: torch.optim.Optimizer, forward: Callable[[], tuple[Tensor, Prediction]]
) -> float:
    """Takes one training step with any optimizer.

    Args:
        optimizer: One of this library's, driven as its ``protocol`` says, or any of torch's.
        forward: Runs the forward pass and returns (loss, prediction).

    Returns:
        The loss before the step.
    """
    if isinstance(optimizer, FunctionOptimizer):
        return float(optimizer.step(forward))  # type: ignore[arg-type]
    optimizer.zero_grad()
    loss, _ = forward()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
