"""What the optimizers share that go from evaluation to evaluation of value and gradient."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.optim.base import Closure, FunctionOptimizer, StepReport, obstacle_to
from npg.optim.objective import Evaluation, Objective, rounding_of
from npg.preconditioners import DENSE_LIMIT


class IteratedOptimizer(FunctionOptimizer):
    """An optimizer each of whose iterations ends where the next one begins.

    Args:
        model: Module to train, or its parameters; the module lets batch normalisation take part.
        defaults: Settings of the parameter groups, ``lr`` among them: not negative. At 0, where
            schedules begin or end, nothing moves and nothing is forgotten.
        iterations: So many iterations per :meth:`step`, all on one closure. They share
            evaluations: for a whole data set take 20, say, for minibatches 1.
        deterministic: Whether to check that the closure agrees with itself: by evaluating it twice
            at the first step, and again whenever no trial was good enough.
        parameters: Restricts a module to a part of its parameters.

    Raises:
        ConfigurationError: If a setting cannot work.
    """

    needs_prediction: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        defaults: dict[str, Any],
        *,
        iterations: int,
        deterministic: bool,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None,
    ) -> None:
        if iterations < 1:
            raise ConfigurationError(f"iterations must be at least 1, got {iterations}")
        super().__init__(model, defaults, parameters)
        self.iterations = iterations
        self.deterministic = deterministic

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters.

        Args:
            param_group: ``params`` and what differs from the defaults.

        Raises:
            ConfigurationError: If a setting cannot work; then the groups are as they were.
        """
        super().add_param_group(param_group)
        self.check_newest_group(None, self.check_groups)

    def check_groups(self, groups: list[dict[str, Any]]) -> None:
        """Refuses groups that cannot work.

        Args:
            groups: All of them.

        Raises:
            ConfigurationError: If a rate is negative or no finite number.
        """
        for group in groups:
            if not 0 <= group["lr"] < math.inf:
                raise ConfigurationError(
                    f"lr must be finite and not negative, got {group['lr']}; 1 is the method's own"
                )

    @abstractmethod
    def advance(self, objective: Objective, start: Evaluation) -> tuple[StepReport, Evaluation]:
        """Takes one iteration from a start with a gradient that is finite and not zero."""

    def step(self, closure: Closure | None = None) -> StepReport:  # type: ignore[override]
        """Takes one step: one iteration, or as many as :attr:`iterations` says.

        Args:
            closure: Runs the forward pass and returns the loss, or (loss, prediction); no
                backward.

        Returns:
            What was done; of several iterations the first one's loss, the last one's other
            figures, and the evaluations of all. A loss or gradient that is not finite, a zero
            gradient and a failed search leave the parameters as they were, bit for bit.

        Raises:
            ConfigurationError: If the closure is of another kind or disagrees with itself.
        """
        objective = Objective(self, closure)
        point = objective.gradient()
        first = point.value
        if self.deterministic and not self.extra["steps"]:
            objective.check_again(first)
        moved: StepReport | None = None
        for _ in range(self.iterations):
            report, point = self.iterate(objective, point)
            if not report.accepted:
                break
            moved = report
        if moved is not None:  # what stopped it then is no reason to call the rest undone
            report = replace(moved, reason=report.reason, gradient_norm=report.gradient_norm)
        return replace(report, loss=first, evaluations=objective.evaluations)

    def iterate(self, objective: Objective, start: Evaluation) -> tuple[StepReport, Evaluation]:
        """Takes one iteration from where the parameters are.

        Args:
            objective: What to minimise.
            start: Its value and gradient there.

        Returns:
            What was done, and value and gradient where the parameters are then.
        """
        self.extra["steps"] += 1
        norm = float(torch.linalg.vector_norm(start.gradient))
        obstacle = obstacle_to(start.value, norm) or self.standstill()
        if obstacle:
            return self.skip(start.value, obstacle, gradient_norm=norm), start
        before = objective.evaluations
        objective.remember()
        moved = False
        try:
            report, point = self.advance(objective, start)
            moved = report.accepted
        finally:
            if not moved:
                objective.restore()
        if not moved:
            self.extra["rejected"] += 1
            if self.deterministic:
                objective.check_again(start.value)
        return replace(
            report, gradient_norm=norm, evaluations=objective.evaluations - before
        ), point

    def rounding(self, start: Evaluation) -> float:
        """By how much the objective's value may be wrong."""
        return rounding_of(start.value, start.gradient.dtype)


def check_dense_size(optimizer: IteratedOptimizer, remedy: str) -> None:
    """Refuses more parameters than a dense matrix can be of.

    Args:
        optimizer: Which keeps or factorises one.
        remedy: What to use instead.

    Raises:
        ConfigurationError: If there are too many.
    """
    size = sum(p.numel() for p in optimizer.tensors())
    if size > DENSE_LIMIT:
        raise ConfigurationError(
            f"{type(optimizer).__name__}: a dense matrix of {size} parameters is too large (limit "
            f"{DENSE_LIMIT}): use {remedy}"
        )
