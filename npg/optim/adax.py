"""AdaX: Adam with a memory of squared gradients that grows instead of fading."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from npg.optim.gradient import Batch, GradientOptimizer, check_range
from npg.preconditioners.diagonal import MeanSquares


class AdaX(GradientOptimizer):
    """θ ← θ − η m / (√v̂ + ε), with an L2 term in the gradients.

        m ← β₁ m + (1 − β₁) g,    v ← (1 + β₂) v + β₂ g²,    v̂ = v / ((1 + β₂)ᵗ − 1)

    v itself would overflow after some 880,000 steps; v̂ ← v̂ + w (g² − v̂) with
    w = β₂ / ((1 + β₂)ᵗ − 1) is the same, and stays in range for ever.

    Args:
        model: Module, or parameters, or groups of them.
        lr: η.
        betas: β₁ and β₂. A high β₁ averages over more steps; a high β₂ lets the past count for
            more than the present sooner.
        eps: ε, which bounds the steps where gradients are tiny.
        weight_decay: λ.
        maximize: Whether to climb.
        foreach: Whether to work on all tensors of a group at once.
        parameters: Restricts a module to these of its parameters.

    Raises:
        ConfigurationError: If a setting cannot work.

    Reference:
        Li et al., "AdaX: adaptive gradient descent with exponential long term memory", 2020.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1.5e-3,
        betas: tuple[float, float] = (0.9, 1e-4),
        eps: float = 1e-12,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool = True,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(
            model,
            {"lr": lr, "betas": betas, "eps": eps},
            parameters,
            weight_decay=weight_decay,
            maximize=maximize,
            foreach=foreach,
        )

    elementwise = True

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_range(group, "betas", 0, 1)
        check_range(group, "eps", 0, math.inf)

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        first, second = group["betas"]
        mean = batch.remembered("mean")
        torch._foreach_lerp_(mean, batch.gradients, 1 - first)
        # β₂ → 0 is the plain mean of all squares.
        growth = math.expm1(min(batch.step * math.log1p(second), 700.0))
        weight = second / growth if growth > 0 else 1 / batch.step
        squares = MeanSquares(
            batch.states, "mean_square", keep=1 - weight, weight=weight, epsilon=group["eps"]
        )
        squares.update(batch.gradients)
        self._shrink(group, batch.parameters)
        torch._foreach_addcdiv_(batch.parameters, mean, squares.denominators(), -group["lr"])


class AdaXW(AdaX):
    """:class:`AdaX` with decoupled weight decay: θ shrinks by η λ θ.

    Args:
        model: Module, or parameters, or groups of them.
        lr: η.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: λ.
        **options: As for :class:`AdaX`.
    """

    decoupled = True

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 5e-3,
        betas: tuple[float, float] = (0.9, 1e-4),
        eps: float = 1e-12,
        weight_decay: float = 5e-2,
        **options: Any,
    ) -> None:
        super().__init__(model, lr, betas, eps, weight_decay, **options)
