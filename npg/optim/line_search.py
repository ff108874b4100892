"""What the optimizers share that search along a direction made of gradients."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.optim.base import StepReport
from npg.optim.iterated import IteratedOptimizer
from npg.optim.objective import UNRESOLVED, Evaluation, Objective
from npg.steps import Armijo, Found, StrongWolfe

LineSearch = StrongWolfe | Armijo
Search = LineSearch | Literal["strong-wolfe", "armijo"] | None


class LineSearchOptimizer(IteratedOptimizer):
    """θ ← θ − α η H g, H what a subclass makes of the gradients that it has seen.

    Args:
        model: Module to train, or its parameters.
        lr: η, multiplier of the first trial, and of the step where nothing is searched for. Before
            H has seen a step, a first trial is no longer than η.
        line_search: ``"strong-wolfe"`` or ``"armijo"``, or :class:`npg.steps.StrongWolfe` or
            :class:`npg.steps.Armijo` with settings of your own; None takes the step as it is, if
            the objective is finite there.
        iterations: As for :class:`IteratedOptimizer`.
        deterministic: As there.
        parameters: As there.

    Raises:
        ConfigurationError: If a setting cannot work.
    """

    # What "strong-wolfe" stands for.
    strong_wolfe: ClassVar[StrongWolfe] = StrongWolfe()

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        line_search: Search,
        iterations: int,
        deterministic: bool,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None,
    ) -> None:
        named = {"strong-wolfe": self.strong_wolfe, "armijo": Armijo()}
        search = named.get(line_search) if isinstance(line_search, str) else line_search
        if (search is None) != (line_search is None) or not isinstance(search, LineSearch | None):
            raise ConfigurationError(
                'line_search must be "strong-wolfe", "armijo", npg.steps.StrongWolfe(...), '
                "npg.steps.Armijo(...) or None"
            )
        super().__init__(
            model,
            {"lr": lr},
            iterations=iterations,
            deterministic=deterministic,
            parameters=parameters,
        )
        self.line_search = search

    @abstractmethod
    def natural(self, gradient: Tensor) -> Tensor:
        """H g, [P]."""

    @abstractmethod
    def learn(self, step: Tensor, before: Tensor, after: Tensor) -> None:
        """Takes in a step [P] and the gradients before and after it."""

    @abstractmethod
    def forget(self) -> bool:
        """Goes back to H = I; returns whether it was another."""

    @property
    @abstractmethod
    def experienced(self) -> bool:
        """Whether H has seen a step, so that its own length is worth a trial."""

    def advance(self, objective: Objective, start: Evaluation) -> tuple[StepReport, Evaluation]:
        """One direction and one search; a second one along −g where the first finds nothing."""
        found = self._search(objective, start)
        if found.point is None and self.forget():
            again = self._search(objective, start)
            found = Found(again.point, found.evaluations + again.evaluations, again.reason)
        point = found.point
        if point is None:
            return StepReport(start.value, start.value, False, found.reason, kl=0.0), start
        step = objective.displacement()
        if not bool(step.any()):
            return StepReport(start.value, start.value, False, UNRESOLVED, kl=0.0), start
        self.learn(step, start.gradient, point.gradient)
        report = StepReport(
            start.value,
            point.value,
            accepted=True,
            reason=found.reason,
            fraction=1.0,
            step_length=point.step,
        )
        return report, point

    def _search(self, objective: Objective, start: Evaluation) -> Found[Evaluation]:
        """Looks along −η H g, and leaves the parameters where it found something."""
        natural = self.natural(start.gradient)
        direction = natural * -1.0 * self.rates()
        slope = float(start.gradient @ direction)
        length = float(torch.linalg.vector_norm(natural))
        if not (math.isfinite(slope) and math.isfinite(length)):
            return Found(None, 0, "direction is not finite")
        if slope >= 0:
            return Found(None, 0, "no descent" if slope else "the step is zero")
        last = [start]

        def evaluate(step: float) -> Evaluation:
            objective.move(direction, step)
            point = objective.gradient(step, direction)
            if not math.isfinite(point.slope):  # a search for values alone would not see it
                point = replace(point, value=math.nan)
            last[0] = point
            return point

        first = 1.0 if self.experienced else min(1.0, 1.0 / length)
        if self.line_search is None:
            point = evaluate(first)
            good = math.isfinite(point.value) and math.isfinite(point.slope)
            return Found(point if good else None, 1, "fixed step" if good else "not finite")
        line = Evaluation(0.0, start.value, slope, start.gradient)
        found = self.line_search.search(evaluate, line, first, self.rounding(start))
        if found.point is not None and found.point is not last[0]:
            objective.move(direction, found.point.step)
        return found
