"""Sums of one step over the ranks of a process group."""

from collections.abc import Sequence
from functools import reduce
from math import prod

import torch
import torch.distributed
from torch import Tensor

from npg.curvature.kronecker.blocks import Block
from npg.linalg.symmetric import pack, packed_shape, unpack


def average(blocks: Sequence[Block]) -> None:
    """Adds the blocks' sums and counts over all ranks, in one call, so that their ratio averages.

    Of symmetric matrices the lower triangles are sent.

    Args:
        blocks: The same on every rank; those without sums take part with zeros, and have none
            afterwards where no rank had any.
    """
    like = blocks[0].parameters[0]
    dtype = reduce(torch.promote_types, (s.dtype for b in blocks for s in b.sums), torch.float32)
    dtype = reduce(torch.promote_types, (p.dtype for b in blocks for p in b.parameters), dtype)
    pieces: list[Tensor] = []
    for block in blocks:
        shapes = block.shapes()
        sums = block.sums or [like.new_zeros(shape) for shape in shapes]
        counts: Sequence[float | Tensor] = block.counts or [0.0] * len(shapes)
        for total, count in zip(sums, counts, strict=True):
            pieces.append(pack(total.detach()).to(dtype).flatten())
            # One count per leading entry: the groups of a layer may have seen different numbers.
            groups = total.shape[0] if total.ndim == 3 else 1
            pieces.append(
                torch.as_tensor(count, dtype=dtype, device=total.device).flatten().expand(groups)
            )
    flat = torch.cat(pieces)
    torch.distributed.all_reduce(flat)
    start = 0

    def take(shape: tuple[int, ...]) -> Tensor:
        nonlocal start
        start += prod(shape)
        return flat[start - prod(shape) : start].reshape(shape)

    for block in blocks:
        sums, counts = [], []
        for shape in block.shapes():
            kind = torch.promote_types(block.parameters[0].dtype, torch.float32)
            sums.append(unpack(take(packed_shape(shape)), shape).to(kind))
            counts.append(take((shape[0], 1, 1) if len(shape) == 3 else ()))
        block.sums, block.counts = sums, counts
    present = torch.stack([block.counts[0].sum() for block in blocks]) > 0  # type: ignore[union-attr]
    for block, anything in zip(blocks, present.tolist(), strict=True):
        if not anything:
            block.clear()
