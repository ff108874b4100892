"""AdaHessian: Adam with the Hessian's diagonal where Adam has the gradient."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from npg.optim.gradient import Batch, check_range
from npg.optim.hessian import HessianOptimizer
from npg.preconditioners.diagonal import MeanSquares


class AdaHessian(HessianOptimizer):
    """θ ← (1 − η λ) θ − η m̂ / (v̂^(k/2) + ε), v the running mean of D².

    D is |z ⊙ Hz|, z random signs, averaged over the positions of a convolution's kernel; m̂ and v̂
    are without the bias of their zero start. See :class:`HessianOptimizer` for where the product
    comes from.

    Args:
        model: Module, or parameters, or groups of them.
        lr: η.
        betas: Of the mean gradient, and of the mean square of D.
        eps: ε. High values turn towards the gradient where the curvature is small.
        weight_decay: λ, decoupled.
        power: k in [0, 1]; 0 is gradient descent with momentum.
        spatial_average: Whether to average D over the dimensions from the third on.
        hessian_interval: Steps from one probe to the next.
        seed: Seeds the signs.
        maximize: Whether to climb.
        foreach: Whether to work on all tensors of a group at once.
        parameters: Restricts a module to these of its parameters.

    Raises:
        ConfigurationError: If a setting cannot work; in a step, if a probe is due and the
            gradients have no graph.

    Reference:
        Yao et al., "ADAHESSIAN: an adaptive second order optimizer for machine learning", 2021.
    """

    decoupled = True

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.15,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        power: float = 1.0,
        *,
        spatial_average: bool = True,
        hessian_interval: int = 1,
        seed: int = 0,
        maximize: bool = False,
        foreach: bool = True,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(
            model,
            {"lr": lr, "betas": betas, "eps": eps, "power": power},
            parameters,
            hessian_interval=hessian_interval,
            seed=seed,
            weight_decay=weight_decay,
            maximize=maximize,
            foreach=foreach,
        )
        self.spatial_average = spatial_average

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_range(group, "betas", 0, 1)
        check_range(group, "eps", 0, math.inf)
        check_range(group, "power", 0, 1 + 1e-12)

    def _measure(
        self,
        group: dict[str, Any],
        states: list[dict[str, Any]],
        signs: list[Tensor],
        products: list[Tensor],
    ) -> None:
        # D² is (Hz)²: neither the signs nor, outside of kernels, the absolute value are needed.
        diagonals = [_averaged(d) for d in products] if self.spatial_average else products
        by_probes: dict[int, list[int]] = {}
        for i, state in enumerate(states):
            state["probes"] = int(state.get("probes", 0)) + 1
            by_probes.setdefault(state["probes"], []).append(i)
        for probes, places in by_probes.items():
            # A mean without bias has the weight (1 − β) / (1 − βⁿ) for the n-th.
            weight = (1 - group["betas"][1]) / (1 - group["betas"][1] ** probes)
            squares = self._squares(group, [states[i] for i in places], weight)
            squares.update([diagonals[i] for i in places])

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        first = group["betas"][0]
        mean = batch.remembered("mean")
        torch._foreach_lerp_(mean, batch.gradients, 1 - first)
        if not all("probes" in state for state in batch.states):  # joined after the last probe
            batch = batch.only([i for i, state in enumerate(batch.states) if "probes" in state])
            mean = [state["mean"] for state in batch.states]
            if not mean:
                return
        denominators = self._squares(group, batch.states, 0.0).denominators()
        self._shrink(group, batch.parameters)
        rate = group["lr"] / (1 - first**batch.step)
        torch._foreach_addcdiv_(batch.parameters, mean, denominators, -rate)

    @staticmethod
    def _squares(group: dict[str, Any], states: list[dict[str, Any]], weight: float) -> MeanSquares:
        return MeanSquares(
            states,
            "mean_square",
            keep=1 - weight,
            weight=weight,
            epsilon=group["eps"],
            power=group["power"],
        )


def _averaged(product: Tensor) -> Tensor:
    """|Hz| [o, i, *kernel] with its mean over the kernel in every place; else as it is."""
    if product.ndim < 3:
        return product
    dimensions = tuple(range(2, product.ndim))
    return product.abs().mean(dimensions, keepdim=True).expand_as(product)
