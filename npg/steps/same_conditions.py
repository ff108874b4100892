"""Evaluating a loss twice under the same random numbers and the same running statistics."""

from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Buffer:
    """A module's buffer, the tensor that it was, and that tensor's value."""

    module: nn.Module
    name: str
    tensor: Tensor
    value: Tensor

    @torch.no_grad()
    def restore(self) -> None:
        self.tensor.copy_(self.value)
        self.module._buffers[self.name] = self.tensor  # some modules replace theirs


class SameConditions:
    """Remembers generators and buffers; inside the ``with`` block they are as they were then.

    Dropout draws the same masks, BatchNorm starts from the same running statistics, and afterwards
    everything goes on as if the block had not been there.

    Args:
        model: Whose buffers to keep.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = (_buffers(model), _generators())
        self.after: tuple[list[_Buffer], list[Tensor]] = ([], [])

    def __enter__(self) -> None:
        """Goes back."""
        self.after = (_buffers(self.model), _generators())
        _restore(*self.before)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Goes on from where the block began."""
        _restore(*self.after)
        self.after = ([], [])


def _restore(buffers: list[_Buffer], generators: list[Tensor]) -> None:
    for buffer in buffers:
        buffer.restore()
    torch.set_rng_state(generators[0])
    if len(generators) > 1:
        torch.cuda.set_rng_state_all(generators[1:])


def _buffers(model: nn.Module) -> list[_Buffer]:
    return [
        _Buffer(module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


def _generators() -> list[Tensor]:
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_gpu]
