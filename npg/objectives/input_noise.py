"""Noise in a model's inputs."""

from typing import Any

import torch
from torch import Tensor, nn

from npg.objectives.checks import check_inputs, check_weight, draw_like


class InputNoise(nn.Module):
    """x + σ ξ, ξ standard normal, while training; x in evaluation.

    To second order in σ the expected loss is L + (σ²/2) tr ∇ₓ²L: for a prediction whose logits, or
    mean, are linear in x it is, in expectation over the model's own labels, L + (σ²/2) ‖∇ₓL‖² for
    each sample, :func:`npg.objectives.input_gradient_penalty` without its second backward pass.

    Either a layer of the model, or called once a step outside of a closure, so that all evaluations
    of a line search see the same noise: ``noisy = noise(x)``.

    Args:
        std: σ, in the units of the inputs.
        seed: Seeds the noise; its generator is saved with the module's state.
        device: Where the noise is drawn. "cpu" gives the same noise on every device; the device of
            the inputs spares the copy.

    Raises:
        ConfigurationError: If σ is negative or not finite.

    Reference:
        Bishop, "Training with noise is equivalent to Tikhonov regularization", 1995.
    """

    def __init__(
        self, std: float, *, seed: int = 0, device: torch.device | str | int = "cpu"
    ) -> None:
        super().__init__()
        check_weight("std", std)
        self.std = std
        self.generator = torch.Generator(device).manual_seed(seed)

    def forward(self, inputs: Tensor) -> Tensor:
        """Adds noise to inputs [N, ...], of any floating-point type."""
        check_inputs(inputs)
        if not (self.training and self.std):
            return inputs
        return inputs + self.std * draw_like(inputs, self.generator)

    def get_extra_state(self) -> Tensor:
        """The generator's state."""
        return self.generator.get_state()

    def set_extra_state(self, state: Any) -> None:  # noqa: ANN401 - torch's signature
        """Restores the generator."""
        self.generator.set_state(state.cpu())

    def extra_repr(self) -> str:
        """σ."""
        return f"std={self.std}"
