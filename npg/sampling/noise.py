"""Normal vectors that are drawn again instead of kept, where they are large."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Numbers drawn at a time. On the CPU they should stay in the cache until they are used.
CHUNK = {"cpu": 2**15}
CHUNK_ELSEWHERE = 2**22
# Numbers that are kept: 8 MB in single precision, to spare small models the second drawing.
KEPT = 2**21
# The CPU's generator makes sixteen normal numbers of sixteen uniform ones: a row that ends
# elsewhere would move the rows after it.
LANES = 16


class ReplayedNoise:
    """Rows ε ~ N(0, I) of so many numbers, of which the generator's states are kept.

    Rows are kept as long as all of them are few numbers. From there on a row costs no memory but a
    chunk's while it is used, and drawing it again costs its time again. On the CPU the same numbers
    come whether rows are drawn one by one or together.

    Args:
        size: P, numbers of a row.
        like: Whose device the rows are on, and whose dtype they have, where it is not a half.
        generator: Draws them; on the same device.
    """

    def __init__(self, size: int, like: Tensor, generator: torch.Generator) -> None:
        self.size = size
        self.device = like.device
        self.dtype = like.dtype if like.dtype.itemsize >= 4 else torch.float32
        self.generator = generator
        self.padded = -(-size // LANES) * LANES
        self.chunk = CHUNK.get(like.device.type, CHUNK_ELSEWHERE)
        # Of blocks of rows: the generator before them, their number, and they themselves if kept.
        self.blocks: list[tuple[Tensor, int, Tensor | None]] = []

    @property
    def count(self) -> int:
        """Rows drawn so far."""
        return sum(number for _, number, _ in self.blocks)

    def row(self) -> Iterator[tuple[int, Tensor]]:
        """Draws one more row, in pieces.

        Yields:
            Where a piece begins, and the piece, which the next one may overwrite.
        """
        if self._has_room(1):
            yield 0, self.rows(1)[0]
            return
        self.blocks.append((self.generator.get_state(), 1, None))
        yield from self._pieces(self.generator)

    def rows(self, number: int) -> Tensor:
        """Draws more rows at once, [number, P]."""
        state = self.generator.get_state()
        room = self._has_room(number)
        rows = self._matrix(number, self.generator)
        self.blocks.append((state, number, rows if room else None))
        return rows

    def again(self, block: int) -> Iterator[tuple[int, Tensor]]:
        """Gives the rows of a block once more, as they were drawn then.

        Args:
            block: Which, in the order of drawing.

        Yields:
            Where pieces of the rows begin, and the pieces [rows, numbers], to be used at once.
        """
        state, number, kept = self.blocks[block]
        if kept is not None:
            yield 0, kept
            return
        generator = torch.Generator(self.generator.device)
        generator.set_state(state)
        if number > 1:
            yield 0, self._matrix(number, generator)
            return
        for first, piece in self._pieces(generator):
            yield first, piece.unsqueeze(0)

    def forget(self) -> None:
        """Takes back the block that was drawn last."""
        state, *_ = self.blocks.pop()
        self.generator.set_state(state)

    def _has_room(self, number: int) -> bool:
        return (self.count + number) * self.padded <= KEPT

    def _pieces(self, generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
        buffer = torch.empty(min(self.chunk, self.padded), dtype=self.dtype, device=self.device)
        for first in range(0, self.padded, self.chunk):
            piece = buffer[: min(self.chunk, self.padded - first)]
            piece.normal_(generator=generator)
            yield first, piece[: self.size - first]

    def _matrix(self, number: int, generator: torch.Generator) -> Tensor:
        rows = torch.empty(number, self.padded, dtype=self.dtype, device=self.device)
        for part in rows.view(-1).split(self.chunk):
            part.normal_(generator=generator)
        return rows[:, : self.size]
