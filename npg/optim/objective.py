"""A closure as a function of the parameters, for steps that evaluate it more than once."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from npg import ranks
from npg.curvature import SameConditions, math_attention
from npg.errors import ConfigurationError
from npg.linalg import add_, assign_
from npg.optim.base import Closure, Prediction
from npg.steps import Point

if TYPE_CHECKING:
    from npg.optim.base import FunctionOptimizer

# Sums of terms of one sign, as most losses are, err by a few units in the last place.
ROUNDING_UNITS = 8.0
UNRESOLVED = "the step is below the parameters' resolution"


@dataclass(frozen=True)
class Evaluation(Point):
    """The objective at a point of a line.

    Attributes:
        gradient: Flat gradient [P]; empty where only the value was asked for.
        graph: Loss and prediction with their graph, for optimizers that go on from it.
    """

    gradient: Tensor
    graph: tuple[Tensor, Prediction | None] | None = None


class Objective:
    """One step's view of a closure: evaluated often, always under the same conditions.

    Random numbers and running statistics advance with the first evaluation; all others find them
    as that one did, and leave them as it left them.

    Args:
        optimizer: Whose step it is.
        closure: Runs the forward pass; no backward.

    Attributes:
        evaluations: So far.
        parameters: What it is a function of.
    """

    def __init__(self, optimizer: "FunctionOptimizer", closure: Closure | None) -> None:
        self.optimizer = optimizer
        self.closure = closure
        self.parameters = optimizer.tensors()
        self.evaluations = 0
        self._conditions: SameConditions | None = None
        self._start: list[Tensor] = []

    def evaluate(self) -> tuple[Tensor, Prediction | None]:
        """Evaluates it where the parameters are, with a graph.

        Returns:
            The loss and, where the closure returns one, the prediction.
        """
        first = self._conditions is None
        with self.conditions():
            return self.optimizer.evaluate(self.closure, watch=first)

    def conditions(self, evaluations: int = 1) -> AbstractContextManager[None]:
        """What to evaluate in, so that all find what the first one found.

        Args:
            evaluations: That are made in it, to be counted.

        Returns:
            The first time a context that changes nothing.
        """
        self.evaluations += evaluations
        if self._conditions is not None:
            return self._conditions
        self._conditions = SameConditions(self.optimizer.module)
        return nullcontext()

    def gradient(self, step: float = 0.0, direction: Tensor | None = None) -> Evaluation:
        """Evaluates value and gradient where the parameters are.

        Args:
            step: How far along the direction that is.
            direction: [P]. Default: none, and a slope of nan.

        Returns:
            What was found; what is not finite is no error.
        """
        return self.differentiated(*self.evaluate(), step, direction)

    def differentiated(
        self,
        loss: Tensor,
        prediction: Prediction | None,
        step: float = 0.0,
        direction: Tensor | None = None,
    ) -> Evaluation:
        """The same of an evaluation that was made.

        Args:
            loss: With its graph.
            prediction: That it was computed from, if the closure told.
            step: As for :meth:`gradient`.
            direction: As there.

        Returns:
            What was found.
        """
        keeps = self.optimizer.keeps_graph
        gradient = self.optimizer.gradient(loss, self.parameters, retain_graph=keeps)
        slope = math.nan if direction is None else float(gradient @ direction)
        graph = (loss, prediction) if keeps else None
        return Evaluation(step, float(loss.detach()), slope, gradient, graph)

    def again(self) -> Any:  # noqa: ANN401 - whatever the closure returns
        """Evaluates it where the parameters are, without a graph.

        Returns:
            What the closure returned.
        """
        assert self.closure is not None
        with torch.no_grad(), self.conditions(), math_attention():
            result = self.closure()
        if not self.optimizer.distributed:
            return result
        loss, *rest = result if isinstance(result, tuple) else (result,)
        loss = ranks.mean_loss(loss) if isinstance(loss, Tensor) else ranks.average(float(loss))
        return (loss, *rest) if rest else loss

    def value(self) -> float:
        """Evaluates the value alone, where the parameters are."""
        result = self.again()
        loss = result[0] if isinstance(result, tuple) else result
        return float(loss.detach())

    def remember(self) -> None:
        """Takes the parameters' present values as the start of a line."""
        self._start = [p.detach().clone() for p in self.parameters]

    def move(self, direction: Tensor, step: float) -> None:
        """Goes to the start plus so much of a direction [P]."""
        add_(self.parameters, self._start, direction, step)

    def restore(self) -> None:
        """Goes back to the start, bit for bit."""
        assign_(self.parameters, self._start)

    def displacement(self) -> Tensor:
        """How far the parameters are from the start [P], after rounding."""
        return torch.cat(
            [
                (p.detach() - q).reshape(-1)
                for p, q in zip(self.parameters, self._start, strict=True)
            ]
        )

    def check_again(self, value: float) -> None:
        """Evaluates once more where the parameters are, and compares.

        Args:
            value: What was found there before.

        Raises:
            ConfigurationError: If the closure disagrees with itself.
        """
        again = self.value()
        if agree(value, again, self.parameters):
            return
        raise ConfigurationError(
            f"{type(self.optimizer).__name__}: the closure returned {value:.9g} and then "
            f"{again:.9g} at the same parameters. torch's own random numbers and the buffers of "
            "the module given as model are kept, so that dropout and batch normalisation may be "
            "there; draw batches, and numbers from other generators, outside the closure, or pass "
            "deterministic=False"
        )


def agree(a: float, b: float, like: Sequence[Tensor]) -> bool:
    """Whether two values are the same but for the order of additions.

    Args:
        a: One of them.
        b: The other.
        like: Tensors of the dtype that they were computed in.

    Returns:
        Whether they differ by less than half of the digits.
    """
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.isfinite(a) == math.isfinite(b)
    return abs(a - b) <= math.sqrt(torch.finfo(like[0].dtype).eps) * max(abs(a), abs(b))


def rounding_of(value: float, dtype: torch.dtype) -> float:
    """By how much a sum may be wrong.

    Args:
        value: It.
        dtype: In which it was added up.

    Returns:
        A few units in the last place.
    """
    return ROUNDING_UNITS * torch.finfo(dtype).eps * abs(value)
