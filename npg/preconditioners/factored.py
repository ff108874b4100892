"""Kronecker factors of the Fisher matrix where its exact products are at hand as well."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from npg.curvature import CurvatureMatrix
from npg.linalg import split
from npg.preconditioners.implicit import Solution
from npg.preconditioners.kfac import KroneckerInverse


@dataclass(frozen=True)
class FactoredInverse:
    """x = F̂⁻¹b with F̂ the Kronecker-factored matrix; one product with F tells xᵀFx.

    It is also a preconditioner for conjugate gradient, as which it is called with a vector.

    Attributes:
        factors: Inverses of the blocks, refreshed with the damping of the system.
        parameters: Those of the flat vectors, in order.
    """

    factors: KroneckerInverse
    parameters: Sequence[Tensor]

    def __call__(self, vector: Tensor) -> Tensor:
        """Returns F̂⁻¹v for a flat v [P]."""
        pieces = dict(zip(self.parameters, split(vector, self.parameters), strict=True))
        return self.factors.flat(pieces)

    def solve(self, matrix: CurvatureMatrix, damping: float, b: Tensor) -> Solution:
        """Returns x = F̂⁻¹b.

        Args:
            matrix: F [P, P].
            damping: λ, which F̂ has been given already.
            b: Right-hand side [P].

        Returns:
            The solution, with the residual that it has in the system of F itself.
        """
        x = self(b)
        product = matrix @ x
        norm = torch.linalg.vector_norm(b)
        residual = b - product - damping * x
        relative = float(torch.linalg.vector_norm(residual) / norm) if norm > 0 else 0.0
        return Solution(x, float(x @ product), 1, relative, "kronecker factors")
