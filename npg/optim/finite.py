"""Gradients that are not finite, found without making a device wait."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor


def usable(gradients: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> list[bool]:
    """Says which parameters can take a step, and counts the others' under ``"skipped"``.

    One norm per tensor is read, which costs little on the CPU and a synchronisation elsewhere:
    there every gradient passes.

    Args:
        gradients: Of the parameters.
        states: Of the parameters.

    Returns:
        Whether all entries are finite.
    """
    here = [i for i, gradient in enumerate(gradients) if gradient.device.type == "cpu"]
    result = [True] * len(gradients)
    if not here:
        return result
    norms = torch._foreach_norm([gradients[i] for i in here])
    for i, norm in zip(here, torch.stack([n.float() for n in norms]).tolist(), strict=True):
        # A norm may overflow where no entry does.
        if not isfinite(norm) and not bool(torch.isfinite(gradients[i]).all()):
            result[i] = False
            states[i]["skipped"] = states[i].get("skipped", 0) + 1
    return result


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
