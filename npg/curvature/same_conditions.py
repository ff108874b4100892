"""Evaluating a model twice under the same random numbers and the same running statistics."""

from types import TracebackType

import torch
from torch import Tensor, nn

Buffers = list[tuple[nn.Module, str, Tensor]]


class SameConditions:
    """Remembers generators and buffers; inside the ``with`` block they are as they were then.

    Dropout draws the same masks, BatchNorm starts from the same running statistics, and afterwards
    everything goes on as if the block had not been there. The modules work on copies inside, so
    that no tensor is written to that a graph has saved: it can be differentiated outside.

    Args:
        model: Whose buffers to keep; None where nobody knows a module.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.model = model
        self.before = (_copies(_buffers(model)), _generators())
        self.after: tuple[Buffers, list[Tensor]] = ([], [])

    def __enter__(self) -> None:
        """Goes back."""
        self.after = (_buffers(self.model), _generators())
        _set(_copies(self.before[0]), self.before[1])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Goes on from where the block began."""
        _set(*self.after)
        self.after = ([], [])


def _buffers(model: nn.Module | None) -> Buffers:
    if model is None:
        return []
    return [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


def _copies(buffers: Buffers) -> Buffers:
    """Copies the tensors; one that two modules share stays shared."""
    copies: dict[int, Tensor] = {}
    for _, _, buffer in buffers:
        if id(buffer) not in copies:
            copies[id(buffer)] = buffer.detach().clone()
    return [(module, name, copies[id(buffer)]) for module, name, buffer in buffers]


def _set(buffers: Buffers, generators: list[Tensor]) -> None:
    for module, name, buffer in buffers:
        module._buffers[name] = buffer
    torch.set_rng_state(generators[0])
    if len(generators) > 1:
        torch.cuda.set_rng_state_all(generators[1:])


def _generators() -> list[Tensor]:
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_gpu]
