"""Sums over the ranks of a process group, of what each rank measured of its part of the batch."""

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor


def sum_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Adds tensors up over all ranks, in one call.

    Args:
        tensors: Of the same shapes on every rank.

    Returns:
        The sums, the same on every rank.
    """
    if not tensors:
        return []
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]
