"""A KL trust region with backtracking on the true divergence and the true loss."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from npg.linalg import add_, assign_

# A divergence that meets its target in this arithmetic could miss it by rounding in another:
# float32 forward passes agree to about 1e-6 in the mean, which moves the KL by 1e-5 of itself.
ROUNDING_MARGIN = 1e-4


@dataclass(frozen=True)
class Trial:
    """The model at a candidate point.

    Attributes:
        loss: Loss on the whole batch.
        kl: Mean KL from the reference prediction, in nats.
    """

    loss: float
    kl: float

    @property
    def finite(self) -> bool:
        """Whether both are finite numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.kl)


@dataclass(frozen=True)
class TrustRegion:
    """Backtracks until KL(reference ‖ new) ≤ target and the loss is below where it was.

    Attributes:
        target_kl: δ, in nats.
        shrinking_factor: Each rejected trial is followed by one this much shorter, in (0, 1).
            Near 1 uses more of the region and takes more trials.
        max_trials: After so many rejections the parameters stay as they were.
    """

    target_kl: float
    shrinking_factor: float = 0.8
    max_trials: int = 10

    def search(
        self,
        parameters: Sequence[Tensor],
        direction: Tensor,
        loss_before: float,
        evaluate: Callable[[], Trial],
    ) -> tuple[float, Trial | None]:
        """Moves the parameters along the direction as far as is allowed.

        Args:
            parameters: Tensors to move, in place. If every trial is rejected, or one raises, they
                are restored bit for bit.
            direction: Flat step [P] of the first trial.
            loss_before: What the loss must fall below.
            evaluate: Computes loss and KL at the parameters' current values.

        Returns:
            The accepted fraction of the direction and its trial, or (0, None).
        """
        start = [parameter.detach().clone() for parameter in parameters]
        fraction = 1.0
        accepted = False
        try:
            for _ in range(self.max_trials):
                add_(parameters, start, direction, fraction)
                with torch.no_grad():
                    trial = evaluate()
                if (
                    trial.finite
                    and trial.kl <= self.target_kl * (1 - ROUNDING_MARGIN)
                    and trial.loss < loss_before
                ):
                    accepted = True
                    return fraction, trial
                fraction *= self.shrinking_factor
        finally:
            if not accepted:
                assign_(parameters, start)
        return 0.0, None
