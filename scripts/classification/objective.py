"""What a run optimises: the loss, or a metric itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from classification.data import Samples
from classification.models import Task
from npg.errors import ConfigurationError
from npg.objectives import macro_f1, score_function
from npg.optim import ParameterSearch

ObjectiveName = Literal["loss", "accuracy", "f1"]
METRICS = {"accuracy": "accuracy", "f1": "macro_f1"}
DEFAULT_DRAWS = 64

BatchLoss = Callable[[Tensor, Samples], Tensor]


@dataclass(frozen=True)
class Objective:
    """Functions of (output, samples) that are to become small.

    Attributes:
        loss: Whose gradient is followed.
        searched: What a search without a gradient minimises; None is the loss.
    """

    loss: BatchLoss
    searched: BatchLoss | None = None


def objective_of(
    name: ObjectiveName, task: Task, optimizer: torch.optim.Optimizer, draws: int | None
) -> Objective:
    """Makes what an optimizer can work with.

    Args:
        name: "loss", or of a metric m: a search minimises 1 − m of the most probable classes, with
            the loss for its guide; others follow the score-function gradient of 1 − E[m] over
            classes drawn from the prediction.
        task: Of the model.
        optimizer: That is to minimise it.
        draws: Of the classes, for a score function; None is 64.

    Returns:
        The objective.

    Raises:
        ConfigurationError: If the model does not classify, or draws are given and none are made.
    """
    searching = isinstance(optimizer, ParameterSearch)
    if draws is not None and (name == "loss" or searching):
        what = "a search" if searching else "the loss"
        raise ConfigurationError(
            f"--draws is for the score-function gradient of a metric, which {what} does without: "
            "leave --draws out"
        )
    if name == "loss":
        return Objective(task.loss)
    if task.likelihood != "categorical":
        raise ConfigurationError(f"--objective {name} is of classes: choose a --model with classes")
    if searching:
        measure = task.measures[METRICS[name]]
        return Objective(task.loss, lambda output, samples: 1 - measure(output, samples))

    def expected(logits: Tensor, samples: Samples) -> Tensor:
        def reward(drawn: Tensor) -> Tensor:
            if name == "accuracy":
                return drawn == samples.labels
            return macro_f1(drawn, samples.labels, logits.shape[1])

        return 1 + score_function(logits, reward, samples=draws or DEFAULT_DRAWS)

    return Objective(expected)
