"""Normal vectors that are drawn again instead of kept."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Numbers drawn at a time. On the CPU they should stay in the cache until they are used.
CHUNK = {"cpu": 2**15}
CHUNK_ELSEWHERE = 2**22
# The CPU's generator makes sixteen normal numbers of sixteen uniform ones: a row that ends
# elsewhere would move the rows after it.
LANES = 16


class ReplayedNoise:
    """Rows ε ~ N(0, I) of so many numbers, of which the generator's states are kept alone.

    A row costs no memory but a chunk's while it is used, and drawing it again costs its time
    again. On the CPU the same numbers come whether rows are drawn one by one or together.

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
        # State of the generator before a block of rows, and their number.
        self.blocks: list[tuple[Tensor, int]] = []

    def row(self) -> Iterator[tuple[int, Tensor]]:
        """Draws one more row, in pieces.

        Yields:
            Where a piece begins, and the piece, which the next one overwrites.
        """
        self.blocks.append((self.generator.get_state(), 1))
        yield from self._pieces(self.generator)

    def rows(self, number: int) -> Tensor:
        """Draws more rows at once, [number, P]."""
        self.blocks.append((self.generator.get_state(), number))
        return self._matrix(number, self.generator)

    def again(self, block: int) -> Iterator[tuple[int, Tensor]]:
        """Draws the rows of a block once more, as they were drawn then.

        Args:
            block: Which, in the order of drawing.

        Yields:
            Where pieces of the rows begin, and the pieces [rows, numbers], to be used at once.
        """
        state, number = self.blocks[block]
        generator = torch.Generator(self.generator.device)
        generator.set_state(state)
        if number > 1:
            yield 0, self._matrix(number, generator)
            return
        for first, piece in self._pieces(generator):
            yield first, piece.unsqueeze(0)

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
