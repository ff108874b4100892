"""The Hessian of a loss."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from npg.curvature.batched import vector_jacobian_products
from npg.curvature.matrix import CurvatureMatrix, math_attention
from npg.linalg import empty_flat, flatten, split, symmetrised


class Hessian(CurvatureMatrix):
    """H = ∇²L, by differentiating gᵀv.

    Args:
        model: Module whose parameters the matrix is over, or the parameters.
        loss: Callable that runs the model and returns the scalar loss, with its own reduction.
        parameters: Restricts the matrix to a part of the model.

    Reference:
        Pearlmutter, "Fast exact multiplication by the Hessian", 1994.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor],
        loss: Callable[[], Tensor],
        *,
        parameters: Iterable[Tensor] | None = None,
    ) -> None:
        super().__init__(model, parameters)
        with torch.enable_grad(), math_attention():
            self.gradient = torch.autograd.grad(
                loss(), self.parameters, create_graph=True, materialize_grads=True
            )

    def matvec(self, vector: Tensor) -> Tensor:
        """Returns H v for a flat v [P]."""
        pairs = [
            (gradient, piece)
            for gradient, piece in zip(self.gradient, split(vector, self.parameters), strict=True)
            if gradient.requires_grad  # not so where the loss is linear in a parameter
        ]
        if not pairs:
            return torch.zeros_like(vector)
        gradients, pieces = zip(*pairs, strict=True)
        products = torch.autograd.grad(
            gradients, self.parameters, pieces, retain_graph=True, materialize_grads=True
        )
        return flatten(products)

    def to_dense(self) -> Tensor:
        """Forms the matrix [P, P] from P products, many at once, symmetrised: for small models."""
        flat = empty_flat(self.parameters)
        dense = torch.diag(torch.zeros_like(flat))
        used = [gradient for gradient in self.gradient if gradient.requires_grad]
        if used:
            # Where a gradient is constant its rows are zero.
            rows = [torch.full((g.numel(),), g.requires_grad) for g in self.gradient]
            count = sum(gradient.numel() for gradient in used)
            units = torch.eye(count, dtype=flat.dtype, device=flat.device)
            dense[torch.cat(rows)] = vector_jacobian_products(used, self.parameters, units).to(flat)
        return symmetrised(dense)
