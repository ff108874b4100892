"""Langevin dynamics: gradient descent with noise, which samples instead of settling."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from npg.optim.gradient import Batch, check_range
from npg.optim.seeded import SeededOptimizer


class Langevin(SeededOptimizer):
    """θ ← θ − η g + √(2 η T) ξ, ξ standard normal.

    For small η the parameters wander as samples of exp(−L(θ) / T).

    Args:
        model: Module, or parameters, or groups of them.
        lr: η.
        temperature: T. 0 is gradient descent; high values leave minima.
        weight_decay: λ of an L2 term in the gradient: a Gaussian prior of variance T / λ.
        seed: Seeds the noise.
        maximize: Whether to climb.
        foreach: Whether to work on all tensors of a group at once.
        parameters: Restricts a module to these of its parameters.

    Raises:
        ConfigurationError: If a setting cannot work.

    Reference:
        Welling and Teh, "Bayesian learning via stochastic gradient Langevin dynamics", 2011.
    """

    squares = False

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.05,
        temperature: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        seed: int = 0,
        maximize: bool = False,
        foreach: bool = True,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(
            model,
            {"lr": lr, "temperature": temperature},
            parameters,
            seed=seed,
            weight_decay=weight_decay,
            maximize=maximize,
            foreach=foreach,
        )

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_range(group, "temperature", 0, math.inf)

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        torch._foreach_add_(batch.parameters, batch.gradients, alpha=-group["lr"])
        deviation = math.sqrt(2 * group["lr"] * group["temperature"])
        if deviation:
            noise = [
                torch.randn(p.shape, generator=self.generator, dtype=p.dtype, device=p.device)
                for p in batch.parameters
            ]
            torch._foreach_add_(batch.parameters, noise, alpha=deviation)
