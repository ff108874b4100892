"""SOAP: Adam in the eigenbasis of Shampoo's moments."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.optim.gradient import Batch, GradientOptimizer, check_range
from npg.preconditioners.blocks import partition
from npg.preconditioners.soap import AdamInEigenbasis


class SOAP(GradientOptimizer):
    """θ ← θ − η Q (m̂' / (√v̂' + ε)), with m' = Qᵀ m and v' the mean of (Qᵀ g)².

    The first step gathers the first moments and moves nothing. With Q = I it is Adam.

    Args:
        model: Module, or parameters, or groups of them.
        lr: η.
        betas: Of the mean gradient and of its squares.
        basis_decay: Of the moments whose eigenvectors Q are. None: the second of ``betas``.
        eps: ε.
        block_size: Largest dimension of a block; larger ones see more correlations, and cost the
            cube of it per refresh.
        merge_size: Largest product up to which neighbouring dimensions are joined first; 0 none.
        refresh_interval: Steps from one turn of the bases to the next.
        precondition_vectors: Whether vectors have a basis, too, or Adam as it is.
        weight_decay: λ, decoupled: parameters shrink by η λ.
        maximize: Whether to climb.
        foreach: Whether to work on all tensors of a group at once, where that is possible.
        parameters: Restricts a module to these of its parameters.

    Raises:
        ConfigurationError: If a setting cannot work.
        NumericalError: In the first step, if its moments have no eigenvectors.

    Reference:
        Vyas et al., "SOAP: improving and stabilizing Shampoo using Adam", 2024.
    """

    decoupled = True
    masks = True
    structural = ("block_size", "merge_size", "precondition_vectors")

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 5e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        basis_decay: float | None = None,
        eps: float = 1e-8,
        *,
        block_size: int = 512,
        merge_size: int = 0,
        refresh_interval: int = 10,
        precondition_vectors: bool = False,
        weight_decay: float = 0.01,
        maximize: bool = False,
        foreach: bool = True,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        if block_size < 1 or merge_size < 0 or refresh_interval < 1:
            raise ConfigurationError(
                "block_size and refresh_interval must be at least 1 and merge_size at least 0, got "
                f"{block_size}, {refresh_interval} and {merge_size}"
            )
        self.block_size = block_size
        self.merge_size = merge_size
        self.refresh_interval = refresh_interval
        self.precondition_vectors = precondition_vectors
        super().__init__(
            model,
            {"lr": lr, "betas": betas, "basis_decay": basis_decay, "eps": eps},
            parameters,
            weight_decay=weight_decay,
            maximize=maximize,
            foreach=foreach,
        )

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_range(group, "betas", 0, 1)
        check_range(group, "eps", 0, math.inf)
        if group["basis_decay"] is not None:
            check_range(group, "basis_decay", 0, 1)

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        filled = [i for i, parameter in enumerate(batch.parameters) if parameter.numel()]
        if not filled:
            return
        batch = batch.only(filled)
        moves = batch.step - 1  # the first step makes none
        adam = self._preconditioner(group, batch, moves)
        if moves == 0:
            adam.gather(batch.gradients)
            adam.refresh()
            return
        adam.update(batch.gradients)
        directions = adam.direction(batch.parameters)
        self._shrink(group, batch.parameters)
        rate = group["lr"] / (1 - group["betas"][0] ** moves)
        torch._foreach_add_(batch.parameters, directions, alpha=-rate)
        if moves % self.refresh_interval == 0:
            adam.refresh()

    def _preconditioner(self, group: dict[str, Any], batch: Batch, moves: int) -> AdamInEigenbasis:
        blocks = [partition(p.shape, self.block_size, self.merge_size) for p in batch.parameters]
        first, second = group["betas"]
        return AdamInEigenbasis(
            batch.states,
            blocks,
            [self.precondition_vectors or len(its.view) > 1 for its in blocks],
            decay=second if group["basis_decay"] is None else group["basis_decay"],
            betas=(first, second),
            epsilon=group["eps"],
            steps=moves,
        )
