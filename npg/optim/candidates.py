"""Evaluating an objective at many places: a batch of them at once, or one after another."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from npg.curvature import math_attention
from npg.linalg import Layout
from npg.optim.objective import Objective


class _Closure(nn.Module):
    """A closure as a module around the model that it runs, whose parameters can be exchanged."""

    def __init__(self, model: nn.Module, closure: Callable[[], Any]) -> None:
        super().__init__()
        self.model = model
        self.closure = closure

    def forward(self) -> Tensor:
        result = self.closure()
        if not (isinstance(result, Tensor) and result.ndim == 0):
            raise TypeError("it does not return a scalar tensor")
        return result


def batched(objective: Objective, rows: Tensor) -> Tensor:
    """Evaluates a closure at many places at once, by :func:`torch.func.vmap`.

    All places see the same random numbers. What the closure returns must be a tensor, computed
    by operations that vmap knows, without a look at its value and without running statistics.

    Args:
        objective: Of a module, whose parameters the closure reads through it.
        rows: Flat parameters [n, P].

    Returns:
        The objectives [n]. What the closure or vmap raise is raised.
    """
    model, closure = objective.optimizer.module, objective.closure
    assert model is not None
    assert closure is not None
    names = {id(p): f"model.{name}" for name, p in model.named_parameters()}
    layout = Layout(objective.parameters)
    pieces = rows.split(layout.sizes, dim=1)
    stacked = {
        names[id(p)]: piece.reshape(len(rows), *p.shape).to(p.dtype)
        for p, piece in zip(objective.parameters, pieces, strict=True)
    }
    wrapper = _Closure(model, closure)

    def at(parameters: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(wrapper, parameters, ())
        return result

    with torch.no_grad(), objective.conditions(len(rows)), math_attention():
        values: Tensor = torch.func.vmap(at, randomness="same")(stacked)
    return values.double()


def can_be_batched(objective: Objective) -> bool:
    """Whether the closure runs a module whose parameters are known by name."""
    model = objective.optimizer.module
    if model is None:
        return False
    known = {id(p) for p in model.parameters()}
    return all(id(p) in known for p in objective.parameters)


def warn_of_no_batch(name: str, error: Exception) -> None:
    """Says why candidates are evaluated one after another.

    Args:
        name: Of the optimizer.
        error: What vmap raised.
    """
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    warnings.warn(
        f"{name}: candidates are evaluated one after another, since vmap cannot run the closure "
        f"({reason}); chunk_size=1 says so from the beginning",
        stacklevel=4,
    )
