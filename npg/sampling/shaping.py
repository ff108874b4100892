"""What evolution strategies put in the place of an objective's values."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Shaping = Literal["ranks", "utilities", "none"]
SHAPINGS: tuple[Shaping, ...] = get_args(Shaping)


def shaped(objectives: Tensor, shaping: Shaping) -> Tensor:
    """Weights of candidates by their objectives; those that are not finite get 0.

    ``"ranks"`` are spread evenly from −1/2, the best, to 1/2, the worst (Salimans et al. 2017):
    nothing but the order of candidates counts. ``"utilities"`` are those of natural evolution
    strategies (Wierstra et al. 2014) times −n, so that a mean over candidates is their sum: the
    better half counts by its logarithmic rank, and the worse half alike. ``"none"`` is the
    objective less its mean. Equal objectives share the mean of their ranks' weights.

    Args:
        objectives: [n], to be minimised.
        shaping: Which.

    Returns:
        [n] in float64; they sum to 0.
    """
    values = objectives.double()
    finite = torch.isfinite(values)
    kept = values[finite]
    result = torch.zeros_like(values)
    if not len(kept):
        return result
    if shaping == "none":
        result[finite] = kept - (kept / len(kept)).sum()  # a sum of large ones could overflow
        return result
    by_rank = _centred_ranks(len(kept)) if shaping == "ranks" else _utilities(len(kept))
    ordered, places = kept.sort()
    ranked = by_rank.to(values)
    if bool((ordered[1:] == ordered[:-1]).any()):
        _, group, counts = torch.unique_consecutive(
            ordered, return_inverse=True, return_counts=True
        )
        sums = torch.zeros_like(counts, dtype=values.dtype).index_add_(0, group, ranked)
        ranked = (sums / counts)[group]
    result[finite] = torch.empty_like(kept).index_copy_(0, places, ranked)
    return result


def _centred_ranks(number: int) -> Tensor:
    if number == 1:
        return torch.zeros(1, dtype=torch.float64)
    return torch.linspace(-0.5, 0.5, number, dtype=torch.float64)


def _utilities(number: int) -> Tensor:
    ranks = torch.arange(1, number + 1, dtype=torch.float64)
    raw = (math.log(number / 2 + 1) - ranks.log()).clamp(min=0)
    return 1 - number * raw / raw.sum()
