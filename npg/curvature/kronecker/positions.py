"""Rows [N, R, ...] of entries and positions: which of them count, their means and moments."""

import torch
from torch import Tensor


def kept_positions(rows: Tensor, mask: Tensor) -> Tensor:
    """Which rows [N, R, ...] belong to samples that count, bool [N, R].

    Args:
        rows: A layer's inputs or their indices.
        mask: Samples that count, of the prediction's batch shape: one per entry, or one per
            position, where a layer that has as many positions keeps them apart.

    Returns:
        The mask at the layer's rows; an entry whose positions are not the prediction's counts
        where any of its samples does.
    """
    n, positions = rows.shape[:2]
    if mask.numel() == n * positions:
        return mask.bool().reshape(n, positions)
    if mask.numel() % n == 0:
        return mask.bool().reshape(n, -1).any(1, keepdim=True).expand(n, positions)
    return torch.ones(n, positions, dtype=torch.bool, device=mask.device)


def second_moment(rows: Tensor) -> Tensor:
    """Σ x xᵀ over N and R: [N, R, d] to [d, d], [N, R, g, d] to [g, d, d]."""
    flat = at_least_single(rows.flatten(0, 1))
    if flat.ndim == 3:
        flat = flat.transpose(0, 1)
    return flat.mT @ flat


def averaged(rows: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Means [N, 1, ...] over the positions that count, and which entries have any."""
    if weights is None:
        return rows.mean(1, keepdim=True), None
    total = torch.where(_beside(weights, rows) > 0, rows, 0.0).sum(1, keepdim=True)
    kept = weights.sum(1, keepdim=True)
    return total / _beside(kept.clamp(min=1), rows), (kept > 0).to(weights.dtype)


def counted(rows: Tensor, weights: Tensor | None) -> tuple[float | Tensor, Tensor]:
    """How many rows count, or [g, 1, 1] per group, and the second moment of these."""
    if weights is None:
        return rows.shape[0] * rows.shape[1], second_moment(rows)
    count = weights.sum((0, 1)).clamp(min=1)
    present = torch.where(_beside(weights, rows) > 0, rows, 0.0)  # padding may be anything
    return count.reshape(-1, 1, 1) if count.ndim else count, second_moment(present)


def _beside(weights: Tensor, rows: Tensor) -> Tensor:
    return weights.reshape(weights.shape + (1,) * (rows.ndim - weights.ndim))


def at_least_single(values: Tensor) -> Tensor:
    """Half precision would not hold a sum over a batch."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
