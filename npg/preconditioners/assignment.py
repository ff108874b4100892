"""Which rank of torch.distributed inverts which block, and how the others come by the result."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.distributed
from torch import Tensor

from npg import ranks

Assignment = Literal["communication-optimal", "memory-optimal"]


class Shares:
    """Blocks shared out over the ranks, so that the last one to finish finishes early.

    With ``"communication-optimal"`` every rank gets every inverse, and preconditions by itself: one
    message per inversion. With ``"memory-optimal"`` a block's inverse stays with the rank that made
    it, which sends the preconditioned gradient on every step.

    Args:
        costs: Of each block's inversion; one that costs nothing is everybody's own.
        assignment: Who keeps what.
        distributed: Whether there are other ranks; else this one has everything.

    Attributes:
        owners: The rank that inverts each block; None where all do.
        rank: This one.

    Reference:
        Pauloski et al., "KAISA: an adaptive second-order optimizer framework for deep neural
        networks", 2021, section 3; Graham, "Bounds on multiprocessing timing anomalies", 1969.
    """

    def __init__(
        self,
        costs: Sequence[float],
        assignment: Assignment = "communication-optimal",
        *,
        distributed: bool = False,
    ) -> None:
        self.rank, self.size = 0, 1
        if distributed:
            self.rank, self.size = ranks.index(), ranks.count()
        self.owners: list[int | None] = [None] * len(costs)
        if self.size > 1:
            self.owners = longest_first(costs, self.size)
        self.memory_optimal = assignment == "memory-optimal"

    def mine(self, i: int) -> bool:
        """Whether this rank inverts block ``i``."""
        return self.owners[i] in (None, self.rank)

    def speaks(self, i: int) -> bool:
        """Whether this rank is the one that says how inverting block ``i`` went."""
        owner = self.owners[i]
        return self.rank == (0 if owner is None else owner)

    def kept(self, i: int) -> bool:
        """Whether this rank keeps the inverse of block ``i``."""
        return self.mine(i) or not self.memory_optimal

    def summed(self, numbers: Sequence[int]) -> list[int]:
        """Adds whole numbers up over the ranks."""
        if self.size == 1:
            return list(numbers)
        total: list[int] = ranks.summed(torch.tensor(numbers, dtype=torch.int64)).tolist()
        return total

    def fill(self, tensors: Mapping[int, Sequence[Tensor]]) -> None:
        """Overwrites tensors of blocks with what the blocks' owners have in theirs.

        Args:
            tensors: Per block, of the same blocks, shapes and dtypes on every rank.
        """
        sent = []
        for owner in range(self.size):
            alike: dict[torch.dtype, list[Tensor]] = {}
            for i, own in tensors.items():
                for tensor in own if self.owners[i] == owner else ():
                    alike.setdefault(tensor.dtype, []).append(tensor)
            for group in alike.values():
                flat = torch.cat([tensor.reshape(-1) for tensor in group])
                work = torch.distributed.broadcast(flat, owner, async_op=True)
                sent.append((owner, group, flat, work))
        for owner, group, flat, work in sent:
            work.wait()
            if owner != self.rank:
                pieces = flat.split([tensor.numel() for tensor in group])
                for tensor, piece in zip(group, pieces, strict=True):
                    tensor.copy_(piece.view_as(tensor))


def longest_first(costs: Sequence[float], size: int) -> list[int | None]:
    """Gives the dearest of what is left to the rank that has least to do, until nothing is.

    The last rank then finishes at most 4/3 − 1/(3 · size) times as late as is possible.

    Args:
        costs: Of each piece of work.
        size: Number of ranks.

    Returns:
        A rank for each; None for what costs nothing.
    """
    loads = [0.0] * size
    owners: list[int | None] = [None] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        if costs[i] > 0:
            owner = min(range(size), key=lambda rank: loads[rank])
            loads[owner] += costs[i]
            owners[i] = owner
    return owners


def inversion_cost(shapes: Sequence[Sequence[int]]) -> float:
    """What inverting or diagonalising matrices costs, in units of n³.

    Args:
        shapes: [d, d], or [g, d, d] of g matrices; [d] of a diagonal costs nothing.

    Returns:
        Σ g d³.
    """
    total = 0.0
    for shape in shapes:
        if len(shape) > 1:
            total += float(shape[-1]) ** 3 * (shape[0] if len(shape) == 3 else 1)
    return total
