"""BatchNorm's running statistics in an update that makes several passes over one rollout."""

from collections.abc import Sequence

import torch
from torch import Tensor


class MovedOnce:
    """Lets every running statistic take the rollout in once, with the first pass that moves it.

    Args:
        buffers: The policy's, before the first pass.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self.waiting = [(buffer, buffer.clone()) for buffer in buffers]
        self.settled: list[tuple[Tensor, Tensor]] = []

    def settle(self) -> None:
        """Ends a pass: what moved for the first time stays there, what moved again goes back."""
        for buffer, value in self.settled:
            buffer.copy_(value)
        still = [(b, value) for b, value in self.waiting if torch.equal(b, value)]
        moved = {id(b) for b, _ in self.waiting} - {id(b) for b, _ in still}
        self.settled += [(b, b.clone()) for b, _ in self.waiting if id(b) in moved]
        self.waiting = still
