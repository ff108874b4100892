"""Second moments of a tensor's blocks along each of their dimensions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npg.preconditioners.base import TensorPreconditioner
from npg.preconditioners.blocks import Partition


class BlockMoments(TensorPreconditioner):
    """L_i ← a L_i + w G_(i) G_(i)ᵀ, G_(i) a block unfolded along its dimension i.

    Args:
        states: A dictionary per tensor.
        partitions: The blocks of every tensor.
        decay: a of a running mean, w = 1 − a; 1 is the sum, with w = 1.
    """

    def __init__(
        self, states: Sequence[dict[str, Any]], partitions: Sequence[Partition], decay: float
    ) -> None:
        super().__init__(states)
        self.partitions = partitions
        self.decay = decay

    def update(self, statistics: list[Tensor]) -> None:
        """Lets a gradient per tensor enter the moments."""
        gather(self.states, self.partitions, self.decay, statistics)


def gather(
    states: Sequence[dict[str, Any]],
    partitions: Sequence[Partition],
    decay: float,
    gradients: Sequence[Tensor],
) -> None:
    """Lets a gradient per tensor enter its moments.

    Args:
        states: A dictionary per tensor, where they are kept.
        partitions: The blocks of every tensor.
        decay: As for :class:`BlockMoments`.
        gradients: Of the tensors' shapes.
    """
    weight = 1.0 if decay == 1 else 1 - decay
    for state, partition, gradient in zip(states, partitions, gradients, strict=True):
        if "moments" not in state:
            wide = torch.promote_types(gradient.dtype, torch.float32)
            state["moments"] = [
                gradient.new_zeros(len(places), d, d, dtype=wide)
                for shape, places in partition.stacks.items()
                for d in shape
            ]
            state["moment_steps"] = 0
        state["moment_steps"] += 1
        moments = iter(state["moments"])
        for blocks in partition.cut(gradient):
            for i in range(1, blocks.ndim):
                moment = next(moments)
                rows = unfolded(blocks, i).to(moment.dtype)
                moment.baddbmm_(rows, rows.mT, beta=decay, alpha=weight)


def along_each(
    matrices: Sequence[Tensor], stacks: Sequence[Tensor], *, transposed: bool = False
) -> list[Tensor]:
    """Multiplies blocks along each of their dimensions.

    Args:
        matrices: [k, d, d] for every dimension of every stack.
        stacks: [k, *block].
        transposed: Whether by the transposes.

    Returns:
        As many stacks, in the matrices' dtype.
    """
    given, result = iter(matrices), []
    for blocks in stacks:
        product = blocks
        for i in range(1, blocks.ndim):
            matrix = next(given)
            shape = product.movedim(i, 1).shape
            rows = unfolded(product, i).to(matrix.dtype)
            product = ((matrix.mT if transposed else matrix) @ rows).view(shape).movedim(1, i)
        result.append(product)
    return result


def unfolded(blocks: Tensor, i: int) -> Tensor:
    """[k, …, d_i, …] as [k, d_i, rest]."""
    moved = blocks.movedim(i, 1)
    return moved.reshape(*moved.shape[:2], -1)
