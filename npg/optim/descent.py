"""From the iterates of conjugate gradient to parameters at which the loss is lower."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from npg.optim.base import Prediction
from npg.optim.objective import UNRESOLVED, Objective, rounding_of
from npg.steps import Armijo, CGBacktracking, Point

# The loss with its graph, and the prediction, where the parameters are.
Evaluated = tuple[Tensor, Prediction | None]


@dataclass(frozen=True)
class Descent:
    """Where a search ended.

    Attributes:
        first: Loss at the solution itself, the first trial; infinite where it is not finite.
        point: Accepted step and loss there; None where the parameters are as they were.
        evaluated: The objective there with its graph, where that was asked for.
        reason: Why the parameters are as they were; empty where they are not.
    """

    first: float
    point: Point | None
    evaluated: Evaluated | None
    reason: str


class Descender:
    """Backtracks over iterates, and then along the one that was chosen.

    Args:
        objective: To be decreased; its parameters move.
        search: Along the chosen iterate.
        step_of: From an iterate [P] to the step that it stands for.
        graphs: Whether trials are evaluated with a graph.
    """

    def __init__(
        self,
        objective: Objective,
        search: Armijo,
        step_of: Callable[[Tensor], Tensor],
        graphs: bool = False,
    ) -> None:
        self.objective = objective
        self.search = search
        self.step_of = step_of
        self.graphs = graphs
        self._first = math.nan
        self._evaluated: Evaluated | None = None

    def descend(
        self,
        loss: float,
        gradient: Tensor,
        solution: Tensor,
        path: CGBacktracking | None,
    ) -> Descent:
        """Moves the parameters to where the loss is lower, or leaves them, bit for bit.

        Args:
            loss: Where they are.
            gradient: There [P].
            solution: What conjugate gradient ended with [P].
            path: What it kept on the way; None to take the solution.

        Returns:
            Where the search ended.
        """
        objective = self.objective
        objective.remember()
        accepted = False
        try:
            value = math.nan  # of the chosen step's whole length
            if path is not None:
                solution, value = path.choose(solution, lambda x: self._value(self.step_of(x), 1.0))
            step = self.step_of(solution)

            def evaluate(length: float) -> Point:
                known = path is not None and length == 1.0
                return Point(length, value if known else self._value(step, length), math.nan)

            # Rates that differ may turn a direction upwards: the loss must not rise all the same.
            start = Point(0.0, loss, min(float(gradient @ step), 0.0))
            rounding = rounding_of(loss, gradient.dtype)
            found = self.search.search(evaluate, start, 1.0, rounding)
            point, reason = found.point, "" if found.point else found.reason
            if point is not None:
                if path is not None:
                    objective.move(step, point.step)  # the last trial was of another iterate
                accepted = bool(objective.displacement().any())
                reason = "" if accepted else UNRESOLVED
        finally:
            if not accepted:
                objective.restore()
        if not accepted:
            return Descent(self._first, None, None, reason)
        return Descent(self._first, point, self._evaluated, "")

    def _value(self, step: Tensor, length: float) -> float:
        """The loss at a trial; infinite where it is not finite, a loss of −∞ included."""
        self.objective.move(step, length)
        if self.graphs:
            self._evaluated = self.objective.evaluate()
            value = float(self._evaluated[0].detach())
        else:
            value = self.objective.value()
        value = value if math.isfinite(value) else math.inf
        if math.isnan(self._first):
            self._first = value
        return value
