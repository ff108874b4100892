"""Step lengths of the entrywise methods, for directions that know nothing of length."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from npg.optim.gradient import Batch

Graft = Literal["sgd", "adagrad", "rmsprop", "adam"]


def grafted(
    kind: Graft, group: dict[str, Any], batch: Batch, mean: Sequence[Tensor]
) -> list[Tensor]:
    """The step that the method would make at rate 1, per parameter.

    Args:
        kind: ``"sgd"``, the mean itself; ``"adagrad"``, divided by the root of the sum of squares;
            ``"rmsprop"``, by the root of their running mean; ``"adam"``, by that without its bias.
        group: With ``betas`` and ``graft_epsilon``.
        batch: Of the step.
        mean: Running mean of the gradients, as the step is to have it: with its bias or without.

    Returns:
        Torch's SGD, Adagrad, RMSprop and Adam move by −η times these, if the mean has no bias.
    """
    if kind == "sgd":
        return list(mean)
    squares = batch.remembered("graft_square")
    if kind == "adagrad":
        torch._foreach_addcmul_(squares, batch.gradients, batch.gradients)
    else:
        second = group["betas"][1]
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, batch.gradients, batch.gradients, 1 - second)
    scale = list(torch._foreach_sqrt(squares))
    if kind == "adam":
        torch._foreach_div_(scale, math.sqrt(1 - group["betas"][1] ** batch.step))
    torch._foreach_add_(scale, group["graft_epsilon"])
    return list(torch._foreach_div(list(mean), scale))
