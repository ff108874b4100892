"""Metrics of classifications as tensors: what to optimise where the loss only stands in for it."""

from numbers import Integral

import torch
from torch import Tensor

from npg.errors import ConfigurationError


def accuracy(predictions: Tensor, labels: Tensor) -> Tensor:
    """Share of the predictions that are right.

    Args:
        predictions: Classes [..., N], such as ``logits.argmax(-1)``, or draws [S, N].
        labels: True classes [N], or of any shape that broadcasts.

    Returns:
        Tensor [...], from 0 to 1; no graph goes through it.
    """
    _check_classes(predictions, labels)
    return (predictions == labels).to(torch.get_default_dtype()).mean(-1)


def macro_f1(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean over classes of F1, the harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN).

    It is scikit-learn's ``f1_score(average="macro")``: classes that are neither predicted nor true
    are left out of the mean. Whatever is no class, −1 for instance, is one class more, whose F1 is
    0. Nothing depends on the data but the numbers, so that it runs inside
    ``torch.func.vmap`` and without waiting for a GPU.

    Args:
        predictions: Classes [..., N], such as ``logits.argmax(-1)``, or draws [S, N].
        labels: True classes [N], or of any shape that broadcasts.
        classes: Their number.

    Returns:
        Tensor [...], from 0 to 1; no graph goes through it.

    Raises:
        ConfigurationError: If a tensor holds no classes, logits for instance, or there are none.
    """
    _check_classes(predictions, labels)
    if not (isinstance(classes, Integral) and classes >= 1):
        raise ConfigurationError(f"classes must be a whole number above 0, got {classes!r}")
    every = torch.arange(classes, device=labels.device)
    predicted, actual = predictions.unsqueeze(-1) == every, labels.unsqueeze(-1) == every
    hits = (predicted & actual).sum(-2)
    members = predicted.sum(-2) + actual.sum(-2)
    scores = 2 * hits / members.clamp(min=1)
    outside = [((t < 0) | (t >= classes)).any(-1) for t in (predictions, labels)]
    counted = (members > 0).sum(-1) + (outside[0] | outside[1])
    return scores.sum(-1) / counted.clamp(min=1)


def _check_classes(predictions: Tensor, labels: Tensor) -> None:
    for name, tensor in (("predictions", predictions), ("labels", labels)):
        if tensor.is_floating_point() or tensor.ndim == 0:
            raise ConfigurationError(
                f"{name} must be classes, integers of shape [..., samples], got "
                f"{tensor.dtype} {list(tensor.shape)}: of logits take logits.argmax(-1)"
            )
