"""Parameter groups that spare biases and normalisation layers the weight decay."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.init import NORMALISATIONS


def spared(model: nn.Module | Iterable[Tensor], parameters: Iterable[Tensor]) -> list[Tensor]:
    """Which parameters are biases, gains or shifts: vectors, and all that a norm has.

    Args:
        model: Whose layers tell; of anything else the dimensions alone do.
        parameters: Some of its parameters.

    Returns:
        Those of them.
    """
    norms: set[int] = set()
    if isinstance(model, nn.Module):
        layers = (layer for layer in model.modules() if isinstance(layer, NORMALISATIONS))
        norms = {id(p) for layer in layers for p in layer.parameters()}
    return [p for p in parameters if p.ndim < 2 or id(p) in norms]


def decay_groups(
    model: nn.Module | Iterable[Tensor], parameters: Iterable[Tensor] | None = None
) -> list[dict[str, Any]]:
    """Divides parameters into those that decay and those that do not.

    Args:
        model: Module, or parameters.
        parameters: Restricts a module to these of its parameters.

    Returns:
        One or two groups, the second with a ``weight_decay`` of 0.

    Raises:
        ConfigurationError: If the parameters are groups already.
    """
    if parameters is None:
        parameters = model.parameters() if isinstance(model, nn.Module) else model
    everything: list[Any] = [p for p in parameters if isinstance(p, dict) or p.requires_grad]
    if any(isinstance(p, dict) for p in everything):
        raise ConfigurationError(
            "decay_biases_and_norms=False makes groups itself: give it parameters, or give the "
            "groups that you have a weight_decay"
        )
    light = {id(p) for p in spared(model, everything)}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in everything if id(p) not in light]},
        {"params": [p for p in everything if id(p) in light], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
