"""Kronecker factors of a one-output chain, as a preconditioner for conjugate gradient.

A sample's row of the Jacobian is δ_l a_lᵀ in layer l, so that layer's block of the Gauss–Newton
matrix is Σ_n h_n (δ δᵀ) ⊗ (a aᵀ). The product of the two means is not the mean of the product, but
near enough: conjugate gradient then needs a few iterations where it needed dozens.
"""

import torch
from torch import Tensor

from npg import ranks
from npg.curvature import GaussNewton
from npg.curvature.scalar_chain import ScalarChain
from npg.errors import ConfigurationError
from npg.linalg import Layout, factored_damping


class KroneckerPreconditioner:
    """v ↦ M⁻¹v with M_l = (A_l + π √λ I) ⊗ (S_l + √λ/π I) per layer.

    A = mean of a aᵀ (with a 1 appended to a for the bias), S = Σ h δ δᵀ, and
    π = √(mean eigenvalue of A / mean eigenvalue of S) shares the damping between them.

    Args:
        matrix: Curvature of a chain with one output, see :meth:`applies`.
        damping: λ, above 0.
        distributed: Whether the moments are to be averaged over the ranks of ``torch.distributed``.

    Raises:
        ConfigurationError: If the matrix is another one, or λ is not positive.

    Reference:
        Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate
        curvature", 2015, sections 3 and 6.3.
    """

    def __init__(self, matrix: GaussNewton, damping: float, distributed: bool = False) -> None:
        chain = matrix.jacobian.blocks[0][0]
        if not (isinstance(chain, ScalarChain) and len(matrix.jacobian.blocks) == 1):
            raise ConfigurationError(
                "matrix is not that of a fully connected chain with one output: ask applies() first"
            )
        if not damping > 0:
            raise ConfigurationError(f"damping must be positive, got {damping}")
        self.damping = damping
        self.layout = Layout(matrix.parameters)
        # Where every sample's loss depends on its own output alone, H_L 1 is the diagonal of H_L.
        weights = matrix.output_product(torch.ones_like(matrix.output)).clamp(min=0)
        moments = []
        for layer, signal in zip(chain.layers, chain.signals, strict=True):
            indices = [i for i in (layer.weight, layer.bias) if i is not None]
            if indices:
                inputs = _second_moment(layer.inputs, layer.weight, layer.bias)
                moments.append((indices, inputs, signal.T @ (weights * signal)))
        if distributed:
            ranks.average_([moment for _, *both in moments for moment in both])
        self.layers = []
        for indices, inputs, signals in moments:
            shares = factored_damping(inputs, signals, damping)
            self.layers.append((indices, _inverse(inputs, shares[0]), _inverse(signals, shares[1])))

    @staticmethod
    def applies(matrix: GaussNewton) -> bool:
        """Whether the matrix is that of one fully connected chain with one output."""
        blocks = matrix.jacobian.blocks
        return len(blocks) == 1 and isinstance(blocks[0][0], ScalarChain)

    def __call__(self, vector: Tensor) -> Tensor:
        """Returns M⁻¹v for a flat v [P]; v / λ where no layer is, for there the matrix is λI."""
        result = vector / self.damping
        pieces, outputs = self.layout.split(vector), self.layout.split(result)
        for indices, inputs, signals in self.layers:
            columns = [pieces[i].reshape(len(signals), -1) for i in indices]
            solved = signals @ torch.cat(columns, 1) @ inputs
            start = 0
            for i, column in zip(indices, columns, strict=True):
                width = column.shape[1]
                outputs[i].copy_(solved[:, start : start + width].view_as(outputs[i]))
                start += width
        return result


def _second_moment(inputs: Tensor, weight: int | None, bias: int | None) -> Tensor:
    """Mean of [a, 1] [a, 1]ᵀ, without the coordinates that are no parameters."""
    size = inputs.shape[1]
    moment = inputs.new_ones(size + 1, size + 1)
    moment[:size, :size] = inputs.T @ inputs / len(inputs)
    moment[:size, size] = moment[size, :size] = inputs.mean(0)
    kept = slice(0 if weight is not None else size, size if bias is None else size + 1)
    return moment[kept, kept]


def _inverse(matrix: Tensor, damping: Tensor) -> Tensor:
    """(matrix + damping I)⁻¹, in float64: damping may be far below the largest eigenvalue."""
    damped = matrix.to(torch.float64, copy=True)
    rounding = len(matrix) * torch.finfo(matrix.dtype).eps * damped.diagonal().max()
    damped.diagonal().add_(damping.double() + rounding)
    factor, _ = torch.linalg.cholesky_ex(damped)  # not finite: conjugate gradient says so
    return torch.cholesky_inverse(factor).to(matrix.dtype)
