"""Which iterate of conjugate gradient to step to."""

import math
from collections.abc import Callable

from torch import Tensor


class CGBacktracking:
    """Keeps iterates 1, 2, … ⌈γʲ⌉ … and the last, and goes back while an earlier one is better.

    Conjugate gradient minimises a model that holds near by only, and each of its iterates is
    further away than the one before. What the loss itself says of them costs one evaluation each.

    Args:
        spacing: γ, above 1. High values keep fewer iterates.

    Attributes:
        kept: Numbers of the iterates kept so far, and copies of these.

    Reference:
        Martens, "Deep learning via Hessian-free optimization", 2010, section 4.6.
    """

    def __init__(self, spacing: float = 1.3) -> None:
        self.spacing = spacing
        self.clear()

    def clear(self) -> None:
        """Forgets everything, for a system that is solved anew."""
        self.kept: list[tuple[int, Tensor]] = []
        self._next = 1
        self._last = 0

    def __call__(self, iteration: int, iterate: Tensor) -> None:
        """Keeps an iterate if its number is one of those; a callback of :func:`npg.linalg.cg`."""
        self._last = iteration
        if iteration < self._next:
            return
        self.kept.append((iteration, iterate.clone()))
        while self._next <= iteration:
            self._next = math.ceil(self._next * self.spacing)

    def choose(self, last: Tensor, evaluate: Callable[[Tensor], float]) -> tuple[Tensor, float]:
        """Goes back from the last iterate.

        Args:
            last: Where conjugate gradient stopped [P].
            evaluate: Loss at an iterate; may be nan or infinite.

        Returns:
            The iterate before which the loss is not lower, and the loss there.
        """
        best, lowest = last, evaluate(last)
        for iteration, iterate in reversed(self.kept):
            if iteration == self._last:
                continue
            value = evaluate(iterate)
            if math.isfinite(lowest) and not value < lowest:
                break
            best, lowest = iterate, value
        return best, lowest
