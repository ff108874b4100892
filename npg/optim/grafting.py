"""Step lengths of the entrywise methods, for directions that know nothing of length."""

from typing import Any, Literal

from torch import Tensor

from npg.optim.gradient import Batch
from npg.preconditioners.diagonal import MeanSquares

Graft = Literal["sgd", "adagrad", "rmsprop", "adam"]


def grafted(kind: Graft, group: dict[str, Any], batch: Batch, mean: list[Tensor]) -> list[Tensor]:
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
        return mean
    second, sums = group["betas"][1], kind == "adagrad"
    squares = MeanSquares(
        batch.states,
        "graft_square",
        keep=1.0 if sums else second,
        weight=1.0 if sums else 1 - second,
        correction=1 - second**batch.step if kind == "adam" else 1.0,
        epsilon=group["graft_epsilon"],
    )
    squares.update(batch.gradients)
    return squares.apply(mean)
