"""Closures of either kind: those that run the forward pass only, and torch's, which go back."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from npg.curvature import math_attention


def run_closure(
    closure: Callable[[], Any],
    parameters: Sequence[Tensor],
    context: AbstractContextManager[object] | None = None,
) -> tuple[Any, bool]:
    """Runs a closure with gradients, and finds out of which kind it is.

    Args:
        closure: Of either kind.
        parameters: Whose gradients tell.
        context: In which to run it. Default: attention can be differentiated twice.

    Returns:
        What it returned, and whether it called ``backward()``.
    """
    before = [(p.grad, None if p.grad is None else p.grad._version) for p in parameters]
    with torch.enable_grad(), context or math_attention():
        result = closure()
    changed = [
        p.grad
        for p, (old, version) in zip(parameters, before, strict=True)
        if p.grad is not None and not (p.grad is old and p.grad._version == version)
    ]
    kept = {id(old) for old, _ in before if old is not None}
    # What is there still, and changed, may have been filled with zeros by zero_grad alone.
    called_backward = any(
        id(g) not in kept or g.device.type == "meta" or bool(g.detach().any()) for g in changed
    )
    return result, called_backward
