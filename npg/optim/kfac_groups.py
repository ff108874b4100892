"""What the parameter groups say to K-FAC of each parameter: settings, and gradients with decay."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from npg.errors import ConfigurationError


def by_parameter(
    groups: Sequence[Mapping[str, Any]], name: str, parameters: Iterable[Tensor]
) -> list[float]:
    """A setting of the groups, per parameter.

    Args:
        groups: Parameter groups.
        name: Of the setting.
        parameters: Some of the groups' parameters.

    Returns:
        A number for each.
    """
    parameters = list(parameters)
    values = {float(group[name]) for group in groups}
    if len(values) == 1:
        return [*values] * len(parameters)
    known = {p: float(group[name]) for group in groups for p in group["params"]}
    return [known[p] for p in parameters]


def decayed_gradients(
    groups: Sequence[Mapping[str, Any]], *, decoupled: bool
) -> dict[Tensor, Tensor]:
    """Gradients of the objective, with its L2 term, by parameter.

    Args:
        groups: Parameter groups.
        decoupled: Whether ``weight_decay`` is no L2 term.

    Returns:
        What ``backward()`` left.

    Raises:
        ConfigurationError: If it left nothing, or something sparse.
    """
    found: dict[Tensor, Tensor] = {}
    for group in groups:
        decay = 0.0 if decoupled else group["weight_decay"]
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.layout != torch.strided:
                raise ConfigurationError(
                    "K-FAC needs dense gradients: use nn.Embedding(..., sparse=False)"
                )
            found[p] = p.grad.add(p, alpha=decay) if decay else p.grad
    if not found:
        raise ConfigurationError(
            "step() found no gradients: call loss.backward() first, or pass a closure"
        )
    return found
