"""The radius of a trust region, which follows how well the quadratic model predicts the loss."""

import math

import torch

SHRINKING = 0.25
GROWING = 2.0
# Of the predicted reduction, what a step has to bring to be taken.
LEAST_RATIO = 1e-4


def resolved_radius(radius: float, dtype: torch.dtype) -> float:
    """Keeps a radius where it and its square are numbers above zero.

    Args:
        radius: Positive, perhaps infinite: where the loss has no lower bound it doubles for ever,
            at a kink it shrinks for ever.
        dtype: Of the parameters, which have to be able to take a step of that length.

    Returns:
        The nearest radius whose square float64 can hold and whose value the dtype can.
    """
    wide, own = torch.finfo(torch.float64), torch.finfo(dtype)
    least = max(own.tiny, math.sqrt(wide.tiny))
    return min(max(radius, least), own.max, math.sqrt(wide.max))


def reduction_ratio(actual_change: float, predicted_change: float) -> float:
    """Compares what a step did with what the model said.

    Args:
        actual_change: Loss after minus loss before.
        predicted_change: The same by the model; negative, where the step is worth a trial.

    Returns:
        ρ = actual / predicted; −inf where it is no number or the model promises a rise.
    """
    ratio = actual_change / predicted_change if predicted_change < 0 else -math.inf
    return ratio if math.isfinite(ratio) else -math.inf


def next_radius(radius: float, length: float, ratio: float, *, bounded: bool) -> float:
    """Adapts the radius to one trial.

    Args:
        radius: Its present value.
        length: Of the step that was tried.
        ratio: ρ of that step.
        bounded: Whether the radius said where the step ends.

    Returns:
        For ρ < ¼ a quarter of the step's length or of the radius, whichever is less; for ρ > ¾
        twice the length of a step that the radius bounded; else the same radius.

    Reference:
        Nocedal and Wright, "Numerical Optimization", 2006, algorithm 4.1.
    """
    if ratio < 0.25:
        return SHRINKING * min(length, radius)
    if ratio > 0.75 and bounded:
        return max(radius, GROWING * length)
    return radius
