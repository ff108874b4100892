"""Many backward passes at once, for matrices that are formed densely."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

# Small models spend their time between operations, and gain several times over; with large ones
# so many copies of everything would leave the processor's cache.
MOST_AT_ONCE = 64
MOST_ENTRIES = 2**16


def vector_jacobian_products(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Tensor
) -> Tensor:
    """Multiplies many vectors by the Jacobian of some tensors.

    The backward pass runs under ``torch.vmap``, which not every operation allows; where one does
    not, it runs once per vector.

    Args:
        outputs: Tensors with a graph, which is retained.
        inputs: What to differentiate with respect to; some may not be involved.
        vectors: U [K, Q], Q the number of elements of all outputs.

    Returns:
        U J [K, P], P the number of elements of all inputs.
    """
    size = sum(tensor.numel() for tensor in inputs)
    at_once = max(1, min(MOST_AT_ONCE, MOST_ENTRIES // max(size, 1)))
    try:
        chunks = [_products(outputs, inputs, chunk, True) for chunk in vectors.split(at_once)]
    except RuntimeError:
        chunks = [_products(outputs, inputs, row, False) for row in vectors.split(1)]
    return torch.cat(chunks)


def _products(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Tensor, batched: bool
) -> Tensor:
    """The same for so many vectors as are differentiated at once; for one alone without vmap."""
    count = len(vectors)
    lead = (count,) if batched else ()
    pieces = [
        piece.reshape((*lead, *output.shape)).to(output.dtype)
        for piece, output in zip(
            vectors.split([output.numel() for output in outputs], dim=1), outputs, strict=True
        )
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        products = torch.autograd.grad(
            outputs,
            inputs,
            pieces,
            retain_graph=True,
            is_grads_batched=batched,
            allow_unused=True,  # materialize_grads makes zeros for one vector alone
        )
    rows = [
        tensor.new_zeros(count, tensor.numel()) if product is None else product.reshape(count, -1)
        for tensor, product in zip(inputs, products, strict=True)
    ]
    return torch.cat(rows, dim=1)
