"""A floor under the training loss."""

import math

import torch
from torch import Tensor

from npg.errors import ConfigurationError


def flooding(loss: Tensor, level: float) -> Tensor:
    """|L − b| + b: descent above the level, ascent below it.

    The training loss cannot settle under b, so that a model that fits its data wanders on where the
    loss is b, into flatter regions.

    Args:
        loss: L, of a batch. A loss per sample is flooded sample by sample, which is another
            objective than the paper's.
        level: b, in the loss's units. Low values do nothing until the training loss is there, high
            ones stop the learning early; the paper searches 0 to 0.1 for the cross-entropy.

    Returns:
        A tensor of the loss's shape. Where L = b exactly the gradient is 0.

    Raises:
        ConfigurationError: If the level is not finite.

    Reference:
        Ishida et al., "Do we need zero training loss after achieving zero training error?", 2020,
        equation 3.
    """
    if not math.isfinite(level):
        raise ConfigurationError(f"level must be finite, got {level}")
    return torch.abs(loss - level) + level
