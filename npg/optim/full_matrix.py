"""Adagrad with the whole matrix of which it usually has the diagonal."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.linalg import flatten, split
from npg.optim.gradient import Batch, GradientOptimizer, check_range, real_view
from npg.preconditioners.full_matrix import DenseRoot, WindowRoot


class FullMatrixAdagrad(GradientOptimizer):
    """θ ← θ − η (M + ε I)^(−1/2) g, M = Σ g gᵀ over all parameters of a group as one vector.

    The sum is over the last so many gradients, of which no more than these are kept; a step then
    costs two passes over them. Differences between these that are below 10⁻⁴ of their size in
    single precision, where their digits are lost, count as none. Parameters without a gradient
    count as having one of 0, and stay.

    Args:
        model: Module, or parameters, or groups of them.
        lr: η: the length of a step along a direction that is new.
        eps: ε, in the units of a squared gradient. High values turn towards the gradient.
        memory: Number of gradients in the sum. None: all that ever were, with M [P, P] formed, for
            P up to 20,000.
        weight_decay: λ of an L2 term in the gradient.
        maximize: Whether to climb.
        parameters: Restricts a module to these of its parameters.

    Raises:
        ConfigurationError: If a setting cannot work.
        NumericalError: In a step, if the matrix has no root.

    Reference:
        Duchi, Hazan and Singer, "Adaptive subgradient methods for online learning and stochastic
        optimization", 2011; Agarwal et al., "Efficient full-matrix adaptive regularization", 2019.
    """

    structural = ("memory",)

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.5,
        eps: float = 1e-8,
        memory: int | None = 32,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        if memory is not None and memory < 1:
            raise ConfigurationError(f"memory must be at least 1, or None for all, got {memory}")
        super().__init__(
            model,
            {"lr": lr, "eps": eps},
            parameters,
            weight_decay=weight_decay,
            maximize=maximize,
        )
        self.memory = memory

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_range(group, "eps", 0, math.inf)

    def _batches(self, group: dict[str, Any]) -> list[Batch]:
        """One batch, whatever the steps: the matrix is that of all."""
        return Batch.joined(super()._batches(group))

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        if not sum(p.numel() for p in batch.parameters):
            return
        # The group's first parameter keeps what is remembered of all.
        state = self.state[group["params"][0]]
        root = (
            DenseRoot(state, group["eps"])
            if self.memory is None
            else WindowRoot(state, group["eps"], self.memory)
        )
        given = {id(state): g for state, g in zip(batch.states, batch.gradients, strict=True)}
        whole = [
            given.get(id(self.state[p]), torch.zeros_like(real_view(p))) for p in group["params"]
        ]
        gradient = flatten(whole)
        root.update([gradient])
        (direction,) = root.apply([gradient])
        pieces = dict(zip(map(id, whole), split(direction, whole), strict=True))
        moves = [pieces[id(g)] for g in batch.gradients]
        torch._foreach_add_(batch.parameters, moves, alpha=-group["lr"])
