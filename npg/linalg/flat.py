"""A list of tensors seen as one flat vector, and back."""

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Concatenates tensors into one new vector, each in row-major order.

    Args:
        tensors: Tensors of any shapes, of one dtype and device.

    Returns:
        A vector [P], P the total number of elements; never a view of its input.
    """
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def empty_flat(like: Sequence[Tensor]) -> Tensor:
    """Makes a vector with room for tensors, to be cut by :func:`split` and written to.

    Args:
        like: Tensors whose sizes, device and widest dtype to take.

    Returns:
        A vector [P] without values.
    """
    kind = reduce(torch.promote_types, (tensor.dtype for tensor in like))
    return like[0].new_empty(sum(tensor.numel() for tensor in like), dtype=kind)


class Layout:
    """The places of some tensors in a flat vector, for cutting many vectors alike.

    Args:
        like: Tensors whose shapes to take.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.like = like
        self.sizes = [tensor.numel() for tensor in like]
        self.size = sum(self.sizes)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cuts a vector [P] into views with the tensors' shapes."""
        pieces = vector.split(self.sizes)
        return [piece.view_as(tensor) for piece, tensor in zip(pieces, self.like, strict=True)]


def split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Cuts a vector into views with the shapes of the given tensors.

    Args:
        vector: Vector [P].
        like: Tensors whose shapes to take, with P elements in total.

    Returns:
        Views of ``vector``: writing to them writes to it.
    """
    return Layout(like).split(vector)


@torch.no_grad()
def assign_(tensors: Sequence[Tensor], values: Iterable[Tensor]) -> None:
    """Copies values into tensors, bit for bit.

    Args:
        tensors: Destination, changed in place.
        values: Source, equal in number and shapes.
    """
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


@torch.no_grad()
def add_(
    tensors: Sequence[Tensor], start: Sequence[Tensor], direction: Tensor, scale: float
) -> None:
    """Sets ``tensors = start + scale · direction``.

    The start is kept by the caller, because subtracting a step again does not restore
    floating-point numbers exactly.

    Args:
        tensors: Destination, changed in place.
        start: Copies of the tensors at the point from which the step is taken.
        direction: Flat direction [P].
        scale: Multiplier of the direction.
    """
    for tensor, origin, piece in zip(tensors, start, split(direction, start), strict=True):
        # Not into tensor.data: that would leave the version counter, by which autograd and
        # copies of a policy notice that a parameter moved, where it was.
        torch.add(origin, piece, alpha=scale, out=tensor)
