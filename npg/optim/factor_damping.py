"""The damping of K-FAC's factors, chosen by what the quadratic model makes of the direction.

The λ that Levenberg and Marquardt's rule sets tells how far the model can be trusted. How strongly
the factors must be damped is another question: they are the block diagonal of an approximation, and
with a small λ alone F̂⁻¹g is mostly noise along directions of which they know little. So γ² goes its
own way, greedily, by the predicted reduction on the batch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npg.errors import NumericalError
from npg.linalg import split
from npg.optim.kfac_curvature import l2_curvature
from npg.optim.quadratic import QuadraticModel
from npg.steps import minimise_quadratic

if TYPE_CHECKING:
    from npg.optim.kfac import KFAC

# The next candidates are so many times larger and smaller.
SPACING = 10.0
BOUNDS = (1e-8, 1e8)


def choose_factor_damping(
    optimizer: "KFAC",
    model: QuadraticModel,
    gradients: Mapping[Tensor, Tensor],
    damping: float,
) -> None:
    """Inverts with γ² and its neighbours, and leaves the best of them in use.

    A γ² that was the best is not asked about at the next inversion: each question costs as much as
    a step or two.

    Args:
        optimizer: Whose factors have just been inverted with the present γ².
        model: Of the objective, on this batch.
        gradients: g by parameter.
        damping: λ of the model.

    Reference:
        Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate
        curvature", 2015, section 6.6.
    """
    extra = optimizer.extra
    if extra["factor_damping_stood"]:
        extra["factor_damping_stood"] = False
        return
    preconditioner, present = optimizer.preconditioner, extra["factor_damping"]
    best = (_reduction(optimizer, model, gradients, damping), present, preconditioner.own_state())
    for candidate in (present / SPACING, present * SPACING):
        if not BOUNDS[0] <= candidate <= BOUNDS[1]:
            continue
        try:
            preconditioner.redamp(candidate + l2_curvature(optimizer))
        except NumericalError:  # one that cannot be inverted is no candidate
            continue
        found = _reduction(optimizer, model, gradients, damping)
        if found < best[0]:
            best = (found, candidate, preconditioner.own_state())
    extra["factor_damping"] = best[1]
    extra["factor_damping_stood"] = best[1] == present
    preconditioner.load_state_dict(best[2])


def exact_directions(
    optimizer: "KFAC", parameters: list[Tensor], gradients: Mapping[Tensor, Tensor]
) -> Tensor:
    """F̂⁻¹g and, where there was one, the last step, in rows [k, P]."""
    last = [optimizer.state[p].get("velocity") for p in parameters]
    moving = [v for v in last if v is not None]
    rows = 2 if len(moving) == len(parameters) else 1
    # Row by row into one matrix: parameters are millions, and each further copy takes its time.
    span = parameters[0].new_empty(rows, sum(p.numel() for p in parameters))
    optimizer.preconditioner.flat({p: gradients[p] for p in parameters}, span[0])
    if rows == 2:
        torch._foreach_copy_(split(span[1], parameters), moving)
    return span


def _reduction(
    optimizer: "KFAC",
    model: QuadraticModel,
    gradients: Mapping[Tensor, Tensor],
    damping: float,
) -> float:
    """The damped model's least value on the span of the directions."""
    span = exact_directions(optimizer, model.parameters, gradients)
    return float(minimise_quadratic(*model.restricted(span), damping=damping).damped_change)
