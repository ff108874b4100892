"""Tensors cut into blocks that are small enough to have full matrices of their own."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from math import prod

import torch
from torch import Tensor


def merged(shape: Sequence[int], limit: int) -> tuple[int, ...]:
    """Joins neighbouring dimensions as long as their product is within a limit.

    Args:
        shape: Of a tensor; dimensions of 1 disappear.
        limit: Largest product.

    Returns:
        The shape to view it in, of at least one dimension.
    """
    result: list[int] = []
    for size in shape:
        if size == 1:
            continue
        if result and result[-1] * size <= limit:
            result[-1] *= size
        else:
            result.append(size)
    return tuple(result) or (1,)


class Partition:
    """A tensor as a grid of blocks, all of one shape but for the last in each dimension.

    Blocks of one shape are stacked, so that one call works on all of them.

    Args:
        shape: The tensor's.
        size: Largest dimension of a block. A longer one is cut into pieces that are as equal as
            they can be.
        merge: Largest product up to which neighbouring dimensions are joined first; 0 joins none.

    Attributes:
        view: Shape that the tensor is seen in.
        shapes: Of the blocks, one for each stack.
    """

    def __init__(self, shape: Sequence[int], size: int, merge: int = 0) -> None:
        self.shape = tuple(shape)
        self.view = merged(shape, merge) if merge else (tuple(shape) or (1,))
        cuts = [_cuts(length, size) for length in self.view]
        places: list[tuple[slice, ...]] = [()]
        for edges in cuts:
            places = [(*place, slice(a, b)) for place in places for a, b in pairwise(edges)]
        self.stacks: dict[tuple[int, ...], list[tuple[slice, ...]]] = {}
        for place in places:
            block = tuple(s.stop - s.start for s in place)
            if prod(block):
                self.stacks.setdefault(block, []).append(place)
        self.shapes = list(self.stacks)
        # Pieces of one length are a matter of strides: [n₁ b₁, n₂ b₂, …] is [n₁, b₁, n₂, b₂, …].
        pieces = [len(edges) - 1 for edges in cuts]
        self._grid = [
            n for count, d in zip(pieces, self.view, strict=True) for n in (count, d // count)
        ]
        self._counts_first = [*range(0, len(self._grid), 2), *range(1, len(self._grid), 2)]

    def cut(self, tensor: Tensor) -> list[Tensor]:
        """Stacks the tensor's blocks, [k, *block] for each of :attr:`shapes`; views if they can."""
        if len(self.shapes) == 1:
            turned = tensor.reshape(self._grid).permute(self._counts_first)
            return [turned.reshape(-1, *self.shapes[0])]
        seen = tensor.reshape(self.view)
        return [torch.stack([seen[place] for place in places]) for places in self.stacks.values()]

    def join(self, stacks: Sequence[Tensor]) -> Tensor:
        """The inverse of :meth:`cut`."""
        if len(self.shapes) == 1:
            turned = stacks[0].reshape([self._grid[i] for i in self._counts_first])
            back = [turned.ndim // 2 * (i % 2) + i // 2 for i in range(turned.ndim)]
            return turned.permute(back).reshape(self.shape)
        result = stacks[0].new_zeros(self.view) if stacks else torch.zeros(self.view)
        for blocks, places in zip(stacks, self.stacks.values(), strict=True):
            for block, place in zip(blocks, places, strict=True):
                result[place] = block
        return result.reshape(self.shape)


@cache
def partition(shape: tuple[int, ...], size: int, merge: int = 0) -> Partition:
    """The :class:`Partition` of these arguments; optimizers ask for it in every step."""
    return Partition(shape, size, merge)


def _cuts(length: int, size: int) -> list[int]:
    """Edges of the fewest pieces of at most ``size``, none longer than another by more than 1."""
    pieces = max(1, -(-length // size))
    return [i * length // pieces for i in range(pieces + 1)]
