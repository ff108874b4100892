"""Sums of one step over the ranks of a process group, sent while the backward pass goes on."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from math import prod

import torch
import torch.distributed
from torch import Tensor

from npg import ranks
from npg.curvature.kronecker.blocks import Block
from npg.linalg.symmetric import pack, packed_shape, unpack


@dataclass
class Begun:
    """Sums on their way.

    Attributes:
        flat: Those of all ranks, once ``work`` is done.
        work: What to wait for.
    """

    flat: Tensor
    work: "torch.distributed.Work"

    def arrived(self) -> Tensor:
        """Waits for the sums."""
        self.work.wait()
        return self.flat


def begin(blocks: Sequence[Block], group: "torch.distributed.ProcessGroup") -> Begun:
    """Begins to add the blocks' sums and counts up over all ranks, and takes them away.

    Of symmetric matrices the lower triangles are sent.

    Args:
        blocks: The same on every rank; those without sums take part with zeros.
        group: Of all ranks, in which nobody else sends: nothing says in which order this, the
            gradients and another estimator's sums come.

    Returns:
        What :func:`average` finishes.
    """
    flat = _packed(blocks)
    for block in blocks:
        block.sums, block.counts = [], []
    return Begun(flat, torch.distributed.all_reduce(flat, group=group, async_op=True))


def average(
    blocks: Sequence[Block], group: "torch.distributed.ProcessGroup", begun: Begun | None = None
) -> None:
    """Gives the blocks the sums and counts of all ranks, so that their ratio averages.

    Args:
        blocks: The same on every rank; they have no sums afterwards where no rank had any.
        group: As for :func:`begin`.
        begun: What was sent of this step; what the blocks hold came later. A rank that has sent
            nothing yet does so now.
    """
    later = begun is not None and any(block.sums for block in blocks)
    begun = begun or begin(blocks, group)
    rest = begin(blocks, group) if ranks.any_rank(later) else None
    flat = begun.arrived()
    if rest is not None:
        flat += rest.arrived()
    _unpack(flat, blocks)


class Groups:
    """Process groups beside the one of everything else, one for each estimator that lives."""

    def __init__(self) -> None:
        self._groups: list[torch.distributed.ProcessGroup] = []
        self._taken: list[bool] = []

    def take(self, owner: object) -> "torch.distributed.ProcessGroup":
        """Finds one that is free on every rank, or makes one; all ranks have to call it together.

        Args:
            owner: Who takes it, until it is collected as garbage.

        Returns:
            A group of all ranks.
        """
        # Ranks may not be done collecting garbage alike.
        taken = ranks.summed(torch.tensor([*self._taken, False], dtype=torch.int64)).tolist()
        i = taken.index(0)
        if i == len(self._groups):
            self._groups.append(torch.distributed.new_group())
            self._taken.append(False)
        self._taken[i] = True
        weakref.finalize(owner, self._taken.__setitem__, i, False)
        return self._groups[i]


@lru_cache(maxsize=1)
def groups_beside(world: object) -> Groups:
    """The groups beside a process group.

    Args:
        world: ``torch.distributed.group.WORLD``.

    Returns:
        The same for as long as that is the process group.
    """
    return Groups()


def _packed(blocks: Sequence[Block]) -> Tensor:
    """Sums and counts as one vector."""
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
    return torch.cat(pieces)


def _unpack(flat: Tensor, blocks: Sequence[Block]) -> None:
    """The inverse; blocks of which no rank had anything get nothing."""
    start = 0

    def take(shape: tuple[int, ...]) -> Tensor:
        nonlocal start
        start += prod(shape)
        return flat[start - prod(shape) : start].reshape(shape)

    for block in blocks:
        sums: list[Tensor] = []
        counts: list[float | Tensor] = []
        for shape in block.shapes():
            kind = torch.promote_types(block.parameters[0].dtype, torch.float32)
            sums.append(unpack(take(packed_shape(shape)), shape).to(kind))
            counts.append(take((shape[0], 1, 1) if len(shape) == 3 else ()))
        block.sums, block.counts = sums, counts
    present = torch.stack([block.counts[0].sum() for block in blocks]) > 0  # type: ignore[union-attr]
    for block, anything in zip(blocks, present.tolist(), strict=True):
        if not anything:
            block.clear()
