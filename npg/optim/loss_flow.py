"""Descent at a rate that the loss itself sets, so that it falls as e⁻ᵗ wherever it stands."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from npg.linalg import split
from npg.optim.base import Closure, FunctionOptimizer, StepReport
from npg.optim.gradient import check_range


class LossFlow(FunctionOptimizer):
    """θ ← θ − η min(1/‖g‖, M) L g / ‖g‖.

    Along dθ/dt = −L g / ‖g‖² the loss is L(0) e⁻ᵗ, whatever the landscape: where the gradient is
    small the steps are long, so that the flow leaves minima with L > 0 behind. It needs a loss
    whose least value is 0, and a large M.

    Args:
        model: Module, or parameters, or groups of them.
        lr: η, the time of a step: the loss should fall by the factor e^−η.
        max_inverse_norm: M, which bounds a step by η M L. Low values stop in every valley.
        parameters: Restricts a module to these of its parameters.

    Raises:
        ConfigurationError: If a setting cannot work.

    Reference:
        Polyak's step size L / ‖g‖² for a known least value, "Introduction to optimization", 1987.
    """

    takes_complex = True

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.05,
        max_inverse_norm: float = 1000.0,
        *,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        defaults = {"lr": lr, "max_inverse_norm": max_inverse_norm}
        super().__init__(model, defaults, parameters)
        self._check()

    def _check(self) -> None:
        for group in self.param_groups:
            check_range(group, "lr", 0, math.inf)
            check_range(group, "max_inverse_norm", 0, math.inf)

    @torch.no_grad()
    def step(self, closure: Closure) -> StepReport:  # type: ignore[override]
        """Takes one step.

        Args:
            closure: Runs the forward pass and returns (loss, prediction); no backward.

        Returns:
            What was done; the loss after the step is not evaluated. A loss below 0, and what is
            not finite, move nothing.
        """
        self._check()
        start = self.start(closure)
        norm, loss = start.gradient_norm, start.loss
        obstacle = start.obstacle
        if not obstacle and loss < 0:
            obstacle = "the loss is negative, and its least value has to be 0"
        if obstacle:
            return self.skip(loss, obstacle, gradient_norm=norm)
        pieces = iter(split(start.gradient, self.tensors()))
        length = 0.0
        for group in self.param_groups:
            length = group["lr"] * min(1 / norm, group["max_inverse_norm"]) * loss / norm
            for parameter in group["params"]:
                if parameter.requires_grad:
                    parameter.add_(next(pieces), alpha=-length)
        return StepReport(
            loss,
            math.nan,
            accepted=True,
            reason="loss flow",
            fraction=1.0,
            step_length=length,
            gradient_norm=norm,
        )
