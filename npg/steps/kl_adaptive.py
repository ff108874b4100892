"""A step size that follows the KL divergence that its steps made."""

import math
from dataclasses import dataclass

from npg.errors import ConfigurationError


@dataclass(frozen=True)
class KLAdaptive:
    """Shortens the step where KL > 2δ, lengthens it where KL < δ/2, both by one factor.

    Attributes:
        target_kl: δ, in nats, the divergence of one whole update.
        factor: Above 1. High values follow faster, and swing more.
        minimum: Lower bound of the step size.
        maximum: Upper bound of the step size.

    Raises:
        ConfigurationError: If the settings are not 0 < δ, 1 < factor, 0 < minimum <= maximum.

    Reference:
        The rule of the code published with Wu et al., "Scalable trust-region method for deep
        reinforcement learning using Kronecker-factored approximation", 2017; Schulman et al.,
        "Proximal policy optimization algorithms", 2017, section 4, moves a penalty the same way.
    """

    target_kl: float
    factor: float = 1.5
    minimum: float = 1e-8
    maximum: float = 1.0

    def __post_init__(self) -> None:
        """Checks the settings."""
        if not (self.target_kl > 0 and self.factor > 1 and 0 < self.minimum <= self.maximum):
            raise ConfigurationError(
                "need target_kl > 0, factor > 1 and 0 < minimum <= maximum, got "
                f"target_kl={self.target_kl}, factor={self.factor}, "
                f"{self.minimum} <= {self.maximum}"
            )

    def update(self, step_size: float, kl: float) -> float:
        """Adapts the step size to the divergence of the step just taken.

        Args:
            step_size: The size with which it was taken.
            kl: Mean KL between the predictions before and after, in nats. What is not finite
                counts as too much.

        Returns:
            The size of the next step, within the bounds.
        """
        if not math.isfinite(kl) or kl > 2 * self.target_kl:
            step_size /= self.factor
        elif kl < self.target_kl / 2:
            step_size *= self.factor
        return min(max(step_size, self.minimum), self.maximum)
