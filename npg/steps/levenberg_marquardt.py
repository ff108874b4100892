"""Damping that follows how well the quadratic model predicts the loss."""

import math
from dataclasses import dataclass

from npg.errors import ConfigurationError


@dataclass
class LevenbergMarquardt:
    """Raises λ where the model promises too much, lowers it where the model is right.

    With ρ = actual / predicted change of the loss: ρ < ¼ multiplies λ by ``factor ** interval``,
    ρ > ¾ divides it. A loss that rose, as the model may have predicted of a step that is not its
    own, and a change that is not finite count as the worst.

    Attributes:
        damping: λ, the current value.
        factor: Above 1. Martens' 3/2 moves gently, larger values recover faster from a bad start.
        minimum: Lower bound of λ.
        maximum: Upper bound of λ.
        interval: Steps from one :meth:`update` to the next, see :meth:`due`. ρ costs a forward
            pass, which large values save; ``factor`` remains the change per step.

    Raises:
        ConfigurationError: If the settings contradict each other.

    Reference:
        Moré, "The Levenberg–Marquardt algorithm: implementation and theory", 1978; Martens 2010,
        section 4.1; Martens and Grosse 2015, section 6.5, for the interval: factor 20/19 and 5
        steps there.
    """

    damping: float = 1.0
    factor: float = 1.5
    minimum: float = 1e-8
    maximum: float = 1e8
    interval: int = 1

    def __post_init__(self) -> None:
        """Checks the settings."""
        if not (self.factor > 1 and 0 < self.minimum <= self.damping <= self.maximum):
            raise ConfigurationError(
                "need factor > 1 and 0 < minimum <= damping <= maximum, got "
                f"factor={self.factor}, {self.minimum} <= {self.damping} <= {self.maximum}"
            )
        if self.interval < 1:
            raise ConfigurationError(f"interval must be at least 1, got {self.interval}")

    def due(self, step: int) -> bool:
        """Whether λ is to be adapted after this step, the first being step 1."""
        return step % self.interval == 0

    def update(self, actual_change: float, predicted_change: float, rounding: float = 0.0) -> float:
        """Adapts λ to one trial.

        Args:
            actual_change: Loss after minus loss before.
            predicted_change: The same by the quadratic model: a negative number, where the step is
                the model's.
            rounding: Changes up to this say nothing: where both are, λ stays.

        Returns:
            The reduction ratio ρ; −inf where it is no number, 1 where rounding hides it.
        """
        if 0 < rounding >= max(abs(actual_change), abs(predicted_change)):
            return 1.0
        ratio = actual_change / predicted_change if predicted_change != 0 else -math.inf
        if not math.isfinite(ratio):
            ratio = -math.inf
        change = self.factor**self.interval
        if ratio < 0.25 or actual_change > 0:
            self.damping = min(self.damping * change, self.maximum)
        elif ratio > 0.75:
            self.damping = max(self.damping / change, self.minimum)
        return ratio
