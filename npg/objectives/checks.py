"""Arguments that every objective refuses alike."""

import math

import torch
from torch import Tensor

from npg.errors import ConfigurationError


def check_weight(name: str, value: float) -> None:
    """Refuses what is negative or not finite."""
    if not 0 <= value < math.inf:
        raise ConfigurationError(f"{name} must be a finite number ≥ 0, got {value}")


def check_inputs(inputs: Tensor) -> None:
    """Refuses inputs that cannot be moved a little."""
    if not inputs.is_floating_point():
        raise ConfigurationError(
            f"inputs must be floating-point, got {inputs.dtype}: of token ids take the embeddings, "
            "of images in bytes `x.float() / 255`"
        )
    if inputs.ndim == 0 or inputs.numel() == 0:
        raise ConfigurationError(
            f"inputs must have shape [samples, ...] and not be empty, got {list(inputs.shape)}"
        )


def draw_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Draws standard normal noise of a tensor's shape, dtype and device where the generator is."""
    noise = torch.randn(
        tensor.shape, generator=generator, dtype=tensor.dtype, device=generator.device
    )
    return noise.to(tensor.device)
