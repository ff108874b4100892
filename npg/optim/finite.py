"""Gradients that are not finite, found without making a device wait."""

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor


def usable(
    gradients: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    name: str = "skipped",
    *,
    squares: bool = True,
) -> list[bool]:
    """Says which parameters can take a step, and counts the others.

    One number per tensor is read, which costs little on the CPU and a synchronisation elsewhere:
    there every gradient passes.

    Args:
        gradients: Of the parameters, or what else is about to enter an average.
        states: Of the parameters.
        name: Under which a state counts.
        squares: Whether their squares enter an average, in which one that overflows would stay.

    Returns:
        Whether all entries are finite, and so is the sum of their squares if that counts.
    """
    # A tensor of another type, fake or spread over processes, has no number to tell.
    here = [i for i, g in enumerate(gradients) if g.is_cpu and type(g) is Tensor]
    result = [True] * len(gradients)
    for i in here:
        gradient = gradients[i]
        gradient = torch.view_as_real(gradient) if gradient.is_complex() else gradient
        flat = gradient.reshape(-1)
        if isfinite(torch.dot(flat, flat) if squares else flat.sum()):
            continue
        # In half precision the number may overflow where its terms, in their averages, do not.
        wide = flat.float() if squares and flat.dtype.itemsize < 4 else flat
        fine = isfinite(torch.dot(wide, wide)) if squares else bool(torch.isfinite(flat).all())
        if not fine:
            result[i] = False
            states[i][name] = states[i].get(name, 0) + 1
    return result


def all_finite(pairs: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Whether that is known of all tensors of pairs of equal shapes, by one look at each pair.

    What is not finite makes their product so; a product that is not may have other reasons.

    Args:
        pairs: Gradients, say, and what a curvature makes of them.

    Returns:
        False also where nothing can be read without waiting.
    """
    for one, other in pairs:
        here = one.is_cpu and type(one) is Tensor and one.dtype == other.dtype
        if not here or one.is_complex():
            return False
        if not isfinite(torch.dot(one.reshape(-1), other.reshape(-1))):
            return False
    return True


def masked(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """Replaces a gradient that is not finite by zeros, and counts it, with nothing read.

    Args:
        gradient: Of a parameter.
        state: Of the parameter; its count ``"skipped"`` is a tensor on the gradient's device.

    Returns:
        The gradient, or zeros.
    """
    finite = torch.isfinite(gradient).all()
    state["skipped"] = state.get("skipped", 0) + (~finite).long()
    return torch.where(finite, gradient, 0.0)
