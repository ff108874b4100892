"""What K-FAC multiplies: a layer's gradient by the inverses of its factors, in any precision."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from npg.curvature.kronecker import Block, MatrixBlock
from npg.curvature.kronecker.layers import MatrixLayer
from npg.linalg.kronecker import factored_damping

# How much of xᵀF̂⁻¹x rounding may change.
TOLERANCE = 0.1
# Of the power method that finds the worst x.
ITERATIONS = 2


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


def narrowed(
    blocks: Sequence[Block],
    inverses: Mapping[int, list[Tensor]],
    damping: float,
    dtype: torch.dtype,
) -> dict[int, list[Tensor]]:
    """Rounds layers' inverses to a narrower dtype, where that does little harm.

    bfloat16 halves what a step reads, and on processors with instructions for it the time of the
    products. Its 8 bits move each entry of F̂⁻¹ by up to 0.2 % of itself, which is much of the
    little that F̂⁻¹ has along the largest curvature. How much is measured.

    Args:
        blocks: All, of which some have new inverses.
        inverses: Damped, by the number of the block; none where another rank keeps them.
        damping: λ.
        dtype: To round to.

    Returns:
        Inverses in ``dtype``, where xᵀF̂⁻¹x is off by less than TOLERANCE of itself for every x that
        was tried; the others as they were, and those that are not a layer's.
    """
    result = dict(inverses)
    rounded, errors = {}, []
    for i, exact in inverses.items():
        block = blocks[i]
        if exact and isinstance(block, MatrixBlock):
            rounded[i] = [inverse.to(dtype) for inverse in exact]
            inputs, signals = block.moments
            shares = factored_damping(inputs, signals, damping)
            found = zip(block.moments, shares, exact, rounded[i], strict=True)
            # Along a diagonal's entries all is off by as little.
            worst = [distortion(*given) for given in found if given[0].ndim > 1]
            errors.append(torch.stack(worst).amax())
    if errors and errors[0].is_meta:
        return {**result, **rounded}
    for i, error in zip(rounded, torch.stack(errors).tolist() if errors else [], strict=True):
        if error < TOLERANCE:
            result[i] = rounded[i]
    return result


def distortion(moment: Tensor, damping: Tensor, inverse: Tensor, rounded: Tensor) -> Tensor:
    """The largest |xᵀ(B − M⁻¹)x| / xᵀM⁻¹x over x, by power iterations of M (B − M⁻¹).

    Args:
        moment: A [(g,) d, d].
        damping: What M = A + damping · I has more, one number per group.
        inverse: M⁻¹.
        rounded: B.

    Returns:
        A scalar: what so many iterations know of it, which is at most it.
    """
    error = rounded.to(inverse.dtype).sub_(inverse)
    size = moment.shape[-1]
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(0))
    # Rounding adds up along inputs that have a mean in common: the start has a part of both.
    z = (drawn + 1).to(inverse).expand(*inverse.shape[:-2], 1, size)
    ratio = z
    for _ in range(1 + ITERATIONS):
        x = z @ moment + damping[..., None, None] * z
        ratio = (z * x).sum(-1, keepdim=True)  # the square of x's length by M⁻¹
        z = x / ratio.clamp(min=torch.finfo(x.dtype).tiny).sqrt() @ error
    return ratio.amax().clamp(min=0).sqrt()


def given_gradients(block: Block, gradients: Mapping[Tensor, Tensor]) -> list[Tensor]:
    """Gradients of a block's parameters, zeros for those that have none.

    Args:
        block: Whose parameters.
        gradients: By parameter.

    Returns:
        One for each of them, in order.
    """
    return [gradients[p] if p in gradients else torch.zeros_like(p) for p in block.parameters]
