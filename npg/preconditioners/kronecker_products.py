"""What K-FAC multiplies: a layer's gradient by the inverses of its factors, in any precision."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from npg.curvature.kronecker import Block
from npg.curvature.kronecker.layers import MatrixLayer

# A factor that may be worse conditioned keeps the inverse in its own dtype. Rounding to b bits
# adds 2⁻ᵇ of the inverse's large entries everywhere, which is 2⁻ᵇ κ where F̂ is largest.
NARROW_CONDITION = 1e3


def sandwich(
    layer: MatrixLayer, inverses: list[Tensor], gradients: Sequence[Tensor], out: list[Tensor]
) -> None:
    """G⁻¹ V A⁻¹ without a copy of V = [W, b]: its columns go in and come out one by one.

    Args:
        layer: Whose gradients they are.
        inverses: A⁻¹ and G⁻¹; A⁻¹ is a diagonal [d] where rows are one-hot.
        gradients: Of the layer's parameters, in the inverses' dtype.
        out: Where the products go, contiguous, one per parameter.
    """
    inputs, signals = inverses
    parts = layer.columns(gradients)
    widths = [part.shape[-1] for part in parts]
    half = parts[0].new_empty(*parts[0].shape[:-1], inputs.shape[-1])
    for part, target in zip(parts, torch.split_with_sizes(half, widths, -1), strict=True):
        torch.matmul(signals, part, out=target)
    if inputs.ndim > 1 and layer.views:
        columns = torch.split_with_sizes(inputs, widths, -1)
        for column, target in zip(columns, layer.columns(out), strict=True):
            torch.matmul(half, column, out=target)
    else:
        solved = half * inputs if inputs.ndim == 1 else half @ inputs
        torch._foreach_copy_(out, layer.gradients(solved))


def narrowed(inverses: list[Tensor], moments: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Rounds a layer's inverses, if its factors are well enough conditioned for that.

    bfloat16 halves what a step reads, and on processors with instructions for it the time of the
    products. With its 8 bits F̂⁻¹g is off by some 1 % at the condition numbers of a few hundred
    that damping leaves.

    Args:
        inverses: A⁻¹ and G⁻¹, damped.
        moments: A and G, without damping.
        dtype: Of the result.

    Returns:
        Both in ``dtype``; or as they were, where the condition number, which ‖A‖ times the root
        mean square of the eigenvalues of A⁻¹ stands for, is above 1000.
    """
    pairs = zip(moments, inverses, strict=True)
    # A diagonal's products are off by as little everywhere.
    conditions = [_condition(a, b) for a, b in pairs if b.ndim > 1]
    known = conditions and not inverses[0].is_meta
    if known and not bool((torch.stack(conditions) <= NARROW_CONDITION).all()):
        return inverses
    return [inverse.to(dtype) for inverse in inverses]


def _condition(moment: Tensor, inverse: Tensor) -> Tensor:
    """‖A‖ ‖A⁻¹‖ / √d in Frobenius norms, the largest of all groups."""
    norms = [torch.linalg.matrix_norm(matrix) for matrix in (moment, inverse)]
    worst: Tensor = (norms[0] * norms[1]).amax()
    return worst / math.sqrt(moment.shape[-1])


def given_gradients(block: Block, gradients: Mapping[Tensor, Tensor]) -> list[Tensor]:
    """Gradients of a block's parameters, zeros for those that have none.

    Args:
        block: Whose parameters.
        gradients: By parameter.

    Returns:
        One for each of them, in order.
    """
    return [gradients[p] if p in gradients else torch.zeros_like(p) for p in block.parameters]
