"""SOAP: Adam in the eigenbasis of Shampoo's moments."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.optim.gradient import Batch, GradientOptimizer, check_range
from npg.preconditioners.blocks import partition
from npg.preconditioners.soap import EigenBasis, refresh

# Parameter, gradient, state, and the basis where it has one.
Turned = tuple[Tensor, Tensor, dict[str, Any], EigenBasis | None]


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
        tensors = [
            (parameter, gradient, state, self._basis(group, parameter))
            for parameter, gradient, state in zip(
                batch.parameters, batch.gradients, batch.states, strict=True
            )
            if parameter.numel()
        ]
        turning = [(g, state, basis) for _, g, state, basis in tensors if basis is not None]
        if batch.step == 1:
            for gradient, state, basis in turning:
                basis.update(state, gradient)
                basis.begin(state)
            return
        if not tensors:
            return
        moves = batch.step - 1  # the first step made none
        first = group["betas"][0]
        directions = self._directions(group, tensors, moves)
        parameters = [parameter for parameter, *_ in tensors]
        self._shrink(group, parameters)
        torch._foreach_add_(parameters, directions, alpha=-group["lr"] / (1 - first**moves))
        for gradient, state, basis in turning:
            basis.update(state, gradient)
        if moves % self.refresh_interval == 0:
            means = [basis.back(state, state["mean"]) for _, state, basis in turning]
            refresh([(state, state["squares"]) for _, state, _ in turning])
            for (_, state, basis), mean in zip(turning, means, strict=True):
                state["mean"] = basis.into(state, mean)

    def _directions(
        self, group: dict[str, Any], tensors: Sequence[Turned], moves: int
    ) -> list[Tensor]:
        """Adam's in the bases, where its means are kept, turned back; m̂ still has its bias."""
        first, second = group["betas"]
        gradients: list[Tensor] = []
        means: list[Tensor] = []
        squares: list[Tensor] = []
        for _, gradient, state, basis in tensors:
            turned = (
                [gradient] if basis is None else basis.into(state, basis.partition.cut(gradient))
            )
            if "mean" not in state:
                state["mean"] = [torch.zeros_like(t) for t in turned]
                state["squares"] = [torch.zeros_like(t) for t in turned]
            gradients += turned
            means += state["mean"]
            squares += state["squares"]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        scales = torch._foreach_sqrt(squares)
        torch._foreach_div_(scales, math.sqrt(1 - second**moves))
        torch._foreach_add_(scales, group["eps"])
        steps = iter(torch._foreach_div(means, scales))
        directions = []
        for parameter, _, state, basis in tensors:
            its = [next(steps) for _ in state["mean"]]
            whole = its[0] if basis is None else basis.partition.join(basis.back(state, its))
            directions.append(whole.to(parameter.dtype))
        return directions

    def _basis(self, group: dict[str, Any], tensor: Tensor) -> EigenBasis | None:
        """None where Adam stays as it is."""
        blocks = partition(tensor.shape, self.block_size, self.merge_size)
        if len(blocks.view) == 1 and not self.precondition_vectors:
            return None
        decay = group["betas"][1] if group["basis_decay"] is None else group["basis_decay"]
        return EigenBasis(blocks, decay)
