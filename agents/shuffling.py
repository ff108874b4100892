"""Random minibatches of the samples of all ranks, of which each rank has its own rows."""

from typing import NamedTuple

import torch
from torch import Tensor

from npg import ranks


class Shuffled(NamedTuple):
    """This rank's rows in a random order, and how they fall into minibatches.

    Attributes:
        rows: Of this rank's samples, every one once.
        sizes: Of this rank's part of each minibatch; maybe none of some.
        shares: Share of that in the minibatch, times the number of ranks.
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
    rows = (step * num_envs + environment % num_envs)[mine]
    sizes = torch.stack([part.count_nonzero() for part in mine.split(batch_size)]).tolist()
    shares = [own * ranks.count() / size for own, size in zip(sizes, whole, strict=True)]
    return Shuffled(rows, sizes, shares)
