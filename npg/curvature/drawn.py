"""Scores at labels that a prediction draws itself, in the middle of a backward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from npg.errors import ConfigurationError
from npg.likelihoods import detached, likelihood, score


def drawn_score(prediction: Distribution, generator: torch.Generator | None) -> Sequence[Tensor]:
    """∇ log p(y) in the prediction's tensors, y of its own drawing.

    Args:
        prediction: Of any registered family.
        generator: Draws the labels. Default: torch's own.

    Returns:
        A tensor for each of the prediction's.
    """
    outside = without_nan(prediction)
    return score(outside, likelihood(outside).sample(outside, generator))


def without_nan(prediction: Distribution) -> Distribution:
    """A copy outside the graph: samplers raise on these, in the middle of a backward pass.

    Args:
        prediction: Of any registered family.

    Returns:
        The same with 1 where it has no number.
    """
    outside = detached(prediction)
    family = likelihood(outside)
    tensors = tuple(torch.where(t.isnan(), 1.0, t) for t in family.tensors(outside))
    rebuilt: Distribution = family.rebuild(outside, tensors)
    return rebuilt


def telling(tensor: Tensor, cotangent: Tensor) -> Tensor:
    """What is not a number has no gradient that is one: the sums must show it."""
    return torch.where(tensor.isnan(), torch.nan, cotangent)


def masked(cotangent: Tensor, mask: Tensor | None) -> Tensor:
    """0 for the samples that do not count, [...] of the cotangent's [..., k]."""
    if mask is None:
        return cotangent
    kept = mask.bool().reshape(mask.shape + (1,) * (cotangent.ndim - mask.ndim))
    return torch.where(kept, cotangent, 0.0)


def propagated(
    tensors: Sequence[Tensor], cotangents: Sequence[Tensor], mask: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """What a backward pass takes: the tensors with a graph, and what to propagate from them.

    Args:
        tensors: Of a prediction.
        cotangents: One for each.
        mask: Which samples count. Default: all.

    Returns:
        Outputs and their cotangents.
    """
    pairs = [
        (tensor, masked(telling(tensor, cotangent), mask))
        for tensor, cotangent in zip(tensors, cotangents, strict=True)
        if tensor.requires_grad
    ]
    return [tensor for tensor, _ in pairs], [cotangent for _, cotangent in pairs]


def check_observed(prediction: Distribution, mask: Tensor | None) -> None:
    """Refuses a prediction that nothing can be measured from.

    Args:
        prediction: Handed over by the user.
        mask: Which samples count.

    Raises:
        ConfigurationError: If it has no graph, or the mask does not fit.
    """
    if not any(t.requires_grad for t in likelihood(prediction).tensors(prediction)):
        raise ConfigurationError(
            "the prediction has no graph: compute it in training mode, with gradients"
        )
    if mask is not None and mask.shape != prediction.batch_shape:
        raise ConfigurationError(
            f"mask must have one entry per sample, shape {tuple(prediction.batch_shape)}, "
            f"got {tuple(mask.shape)}"
        )
