"""Random minibatches of the samples of all ranks, of which each rank has its own rows."""

from typing import NamedTuple

import torch
from torch import Tensor

from npg import ranks


class Shuffled(NamedTuple):
    """This rank's rows in a random order, and how they fall into minibatches.

    Attributes:
        rows: Of this rank's samples, every one once; where none is in a minibatch, one that does
            not count stands there, for not every network can be run on nothing.
        sizes: Of this rank's part of each minibatch.
        shares: Share of that in the minibatch, times the number of ranks; 0 where nothing counts.
    """

    rows: Tensor
    sizes: list[int]
    shares: list[float]


def shuffled(order: Tensor, num_envs: int, batch_size: int) -> Shuffled:
    """Cuts a random order of all ranks' samples into minibatches, and finds this rank's rows.

    Samples lie step by step, as those of one process with the environments of all ranks would, rank
    0's first: sample i is of environment i mod E, and each rank has ``num_envs`` of these.

    Args:
        order: Permutation of all samples; that of rank 0 counts.
        num_envs: Environments of a rank.
        batch_size: Samples per minibatch, of all ranks together; the last may have fewer.

    Returns:
        The rows.
    """
    whole = [min(batch_size, len(order) - start) for start in range(0, len(order), batch_size)]
    if ranks.count() == 1:
        return Shuffled(order, whole, [1.0] * len(whole))
    ranks.share_([order])
    environments = num_envs * ranks.count()
    step, environment = order // environments, order % environments
    mine = environment // num_envs == ranks.index()
    rows = step * num_envs + environment % num_envs
    parts = [
        part[own] for part, own in zip(rows.split(batch_size), mine.split(batch_size), strict=True)
    ]
    shares = [len(part) * ranks.count() / size for part, size in zip(parts, whole, strict=True)]
    parts = [part if len(part) else part.new_zeros(1) for part in parts]
    return Shuffled(torch.cat(parts), [len(part) for part in parts], shares)
