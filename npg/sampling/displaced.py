"""Parameters that are displaced where they are, and put back exactly."""

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from npg.errors import ConfigurationError
from npg.linalg import assign_, flatten, split


class Piece(NamedTuple):
    """A part of a parameter beside the same part of flat vectors.

    Attributes:
        tensor: Which parameter.
        place: A view of it: writing to it moves the parameter.
        span: Where it is in a flat vector.
    """

    tensor: int
    place: Tensor
    span: slice


class Displaced:
    """Tensors as one flat vector, with a copy of where they were.

    Adding and subtracting a displacement does not give the same numbers back; the copy does.

    Args:
        tensors: What to move.

    Attributes:
        tensors: Those that have elements.
        start: The copy, [P], of a dtype that has the numbers of all.
        moved: Whether they may be elsewhere.

    Raises:
        ConfigurationError: If there is nothing to move.
    """

    @torch.no_grad()
    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = [tensor for tensor in tensors if tensor.numel()]
        if not self.tensors:
            raise ConfigurationError(
                "there are no parameters to move: all are frozen (requires_grad=False), or empty"
            )
        wide = reduce(torch.promote_types, (tensor.dtype for tensor in self.tensors))
        self.start = flatten(t.detach().to(wide) for t in self.tensors)
        self.moved = False
        # Views of the tensors; a tensor with holes in memory has none, and gets a stand-in.
        self._flat: list[Tensor] = []
        self._stand_ins: list[tuple[Tensor, Tensor]] = []
        for tensor in self.tensors:
            own = tensor.detach()
            if not own.is_contiguous():
                own = own.contiguous()
                self._stand_ins.append((tensor, own))
            self._flat.append(own.view(-1))
        self._ends = [0, *accumulate(t.numel() for t in self.tensors)]

    def pieces(self, first: int, number: int) -> Iterator[Piece]:
        """Cuts a part of the flat vector at the borders of the tensors.

        Args:
            first: Where it begins.
            number: Of its elements.

        Yields:
            The pieces, in order.
        """
        self.moved = True
        last = first + number
        for i, flat in enumerate(self._flat):
            begin, end = max(first, self._ends[i]), min(last, self._ends[i + 1])
            if begin < end:
                offset = self._ends[i]
                yield Piece(i, flat[begin - offset : end - offset], slice(begin, end))

    def whole(self) -> Iterator[Piece]:
        """All tensors, a piece each."""
        return self.pieces(0, len(self.start))

    def reflect(self, offset: Tensor | None = None) -> None:
        """Moves them to the other side of the start.

        Args:
            offset: Of a centre other than the start, from it [P].
        """
        for _, place, span in self.whole():
            place.lerp_(self.start[span].to(place.dtype), 2.0)
            if offset is not None:
                place.add_(offset[span], alpha=2)
        self.written()

    def written(self) -> None:
        """Says that the views were written to: tensors that have none take over what was."""
        assign_([tensor for tensor, _ in self._stand_ins], [own for _, own in self._stand_ins])

    def set(self, vector: Tensor) -> None:
        """Moves the tensors to a flat vector [P]."""
        self.assign(split(vector, self.tensors))

    def assign(self, values: Iterable[Tensor]) -> None:
        """Moves the tensors to values of their shapes."""
        self.moved = True
        assign_(self.tensors, values)
        for tensor, own in self._stand_ins:
            own.copy_(tensor.detach())

    def untouched(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are still the tensors, and where they were."""
        same = [t for t in tensors if t.numel()]
        return len(same) == len(self.tensors) and all(
            a is b and torch.equal(a.detach(), piece.to(a.dtype))
            for a, b, piece in zip(same, self.tensors, split(self.start, self.tensors), strict=True)
        )

    def restore(self) -> None:
        """Moves them back, bit for bit, if they were moved."""
        if self.moved:
            self.set(self.start)
            self.moved = False
