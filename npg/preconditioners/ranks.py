"""Sums and means over the ranks of a process group, of what each measured of its samples."""

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


def mean_over_ranks(
    tensors: Sequence[Tensor | None], like: Sequence[Tensor]
) -> list[Tensor | None]:
    """Averages tensors over all ranks, in one call.

    Args:
        tensors: The same number on every rank; None counts as zero.
        like: Their shapes.

    Returns:
        The means, the same on every rank; None where no rank had anything.
    """
    given = [
        torch.zeros_like(t) if tensor is None else tensor.detach()
        for tensor, t in zip(tensors, like, strict=True)
    ]
    present = given[0].new_tensor([float(tensor is not None) for tensor in tensors])
    *sums, found = sum_over_ranks([*given, present])
    size = torch.distributed.get_world_size()
    return [
        total.to(t.dtype) / size if anywhere else None
        for total, t, anywhere in zip(sums, like, found.real.tolist(), strict=True)
    ]
