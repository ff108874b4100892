"""Symmetric matrices as their lower triangles: half of what is saved and sent."""

from collections.abc import Sequence

import torch
from torch import Tensor


def packed_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of what :func:`pack` makes of a tensor.

    Args:
        shape: Of a symmetric matrix [..., d, d]; anything that is not square stays as it is.

    Returns:
        [..., d (d + 1) / 2], or the shape itself.
    """
    if len(shape) < 2 or shape[-1] != shape[-2]:
        return tuple(shape)
    return (*shape[:-2], shape[-1] * (shape[-1] + 1) // 2)


def pack(matrix: Tensor) -> Tensor:
    """Takes the lower triangle, row by row; a new tensor.

    Args:
        matrix: Symmetric, [..., d, d]; anything that is not square stays as it is.

    Returns:
        [..., d (d + 1) / 2].
    """
    if packed_shape(matrix.shape) == tuple(matrix.shape):
        return matrix.clone()
    rows, columns = torch.tril_indices(*matrix.shape[-2:], device=matrix.device)
    return matrix[..., rows, columns]


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`pack`.

    Args:
        packed: What it made.
        shape: Of the matrix.

    Returns:
        The matrix, a new tensor.
    """
    if packed_shape(shape) == tuple(shape):
        return packed.clone().reshape(tuple(shape))
    rows, columns = torch.tril_indices(shape[-2], shape[-1], device=packed.device)
    matrix = packed.new_empty(tuple(shape))
    matrix[..., rows, columns] = packed
    matrix[..., columns, rows] = packed
    return matrix
