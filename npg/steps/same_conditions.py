"""Evaluating a loss twice under the same random numbers and the same running statistics."""

from types import TracebackType

import torch
from torch import Tensor, nn


class SameConditions:
    """Remembers generators and buffers; inside the ``with`` block they are as they were then.

    Dropout draws the same masks, BatchNorm starts from the same running statistics, and afterwards
    everything goes on as if the block had not been there.

    Args:
        model: Whose buffers to keep.
    """

    def __init__(self, model: nn.Module) -> None:
        self.buffers = list(model.buffers())
        self.before = [buffer.clone() for buffer in self.buffers]
        self.generators = _generators()
        self.after: tuple[list[Tensor], list[Tensor]] = ([], [])

    def __enter__(self) -> None:
        """Goes back."""
        self.after = ([buffer.clone() for buffer in self.buffers], _generators())
        self._set(self.before, self.generators)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Goes on from where the block began."""
        self._set(*self.after)

    @torch.no_grad()
    def _set(self, buffers: list[Tensor], generators: list[Tensor]) -> None:
        for buffer, value in zip(self.buffers, buffers, strict=True):
            buffer.copy_(value)
        torch.set_rng_state(generators[0])
        if len(generators) > 1:
            torch.cuda.set_rng_state_all(generators[1:])


def _generators() -> list[Tensor]:
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_gpu]
