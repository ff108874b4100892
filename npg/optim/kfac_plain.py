"""K-FAC's step along the natural gradient: KL clip, momentum, decay; no device is waited for.

v ← μ v − (1 − μ) ν η F̂⁻¹g,  θ ← θ + v, see :class:`npg.optim.KFAC`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npg.errors import ConfigurationError
from npg.linalg import empty_flat, split
from npg.optim.kfac_groups import by_parameter
from npg.optim.kfac_settings import PLAIN_KL_CLIP, PLAIN_MOMENTUM
from npg.preconditioners import ChainInverse
from npg.steps import kl_clip_factor

if TYPE_CHECKING:
    from npg.optim.kfac import KFAC


@dataclass(frozen=True)
class Motion:
    """A step that is ready to be taken.

    Attributes:
        parameters: What it moves.
        velocity: v per parameter.
        finite: 1 or 0, a scalar tensor: whether it may be taken at all. None where it is known
            that it may.
        shrinking: What decoupled weight decay multiplies each parameter by, less 1.
    """

    parameters: list[Tensor]
    velocity: list[Tensor]
    finite: Tensor | None
    shrinking: list[float]

    def displacement(self) -> list[Tensor]:
        """By how much each parameter will move."""
        allowed = 1.0 if self.finite is None else self.finite
        steps = torch._foreach_mul(self.velocity, allowed)
        for p, step, factor in zip(self.parameters, steps, self.shrinking, strict=True):
            if factor:
                step.add_(p * allowed, alpha=factor)
        return list(steps)

    def take(self) -> None:
        """Moves the parameters."""
        allowed = 1.0 if self.finite is None else self.finite
        if any(self.shrinking):
            for p, factor in zip(self.parameters, self.shrinking, strict=True):
                p.mul_(1 + allowed * factor)
        if self.finite is None:
            torch._foreach_add_(self.parameters, self.velocity)
            return
        finite = {p.dtype: self.finite.to(p.dtype) for p in self.parameters}
        for p, v in zip(self.parameters, self.velocity, strict=True):
            p.addcmul_(v, finite[p.dtype])


def motion(optimizer: "KFAC", gradients: Mapping[Tensor, Tensor]) -> Motion:
    """Takes the natural gradient into the velocity.

    Args:
        optimizer: Whose inverse, settings and velocities to use.
        gradients: g by parameter.

    Returns:
        The step. One of a gradient that is not finite moves nothing, and leaves v as it was.

    Raises:
        ConfigurationError: If the KL of the step cannot be told.
    """
    settings = optimizer.param_groups[0]
    given = settings["momentum"]
    momentum = PLAIN_MOMENTUM if given is None or given == "quadratic" else float(given)
    clip = PLAIN_KL_CLIP if settings["kl_clip"] is None else settings["kl_clip"]
    parameters = list(gradients)
    rates = by_parameter(optimizer.param_groups, "lr", parameters)
    uniform = len(set(rates)) == 1
    if not (uniform or clip == math.inf):
        _check_rates(optimizer, dict(zip(parameters, rates, strict=True)))
    # One vector of all: a small network's step is a matter of calls, not of arithmetic.
    flat = empty_flat(list(gradients.values()))
    pieces = split(flat, parameters)
    optimizer.preconditioner.write(gradients, dict(zip(parameters, pieces, strict=True)))
    inner = _inner(gradients.values(), pieces, rates)
    # In the host's memory a number can be read without waiting for it.
    known = isinstance(inner, float) and math.isfinite(inner)
    factor = 1.0 if clip == math.inf else kl_clip_factor(inner, clip)
    finite = None
    if not known:  # what is not finite will be multiplied by zero, which takes a number
        finite = torch.isfinite(torch.as_tensor(inner)).to(flat)
        torch.nan_to_num_(flat, nan=0.0, posinf=0.0, neginf=0.0)
        factor = finite * factor
        optimizer.leave_out(finite)
    flat.mul_(factor * (-rates[0] if uniform else -1.0))
    if not uniform:
        flat.mul_(_per_entry(rates, parameters, flat))
    velocity = pieces
    if momentum > 0:
        velocity = [_velocity(optimizer, p) for p in parameters]
        weight = 1 - momentum if finite is None else finite * (1 - momentum)
        for v, piece in zip(velocity, pieces, strict=True):
            v.lerp_(piece.to(v.dtype), weight)
    else:
        for p in parameters:
            optimizer.state.pop(p, None)
    return Motion(parameters, velocity, finite, shrinking(optimizer, parameters))


def _per_entry(values: list[float], parameters: list[Tensor], like: Tensor) -> Tensor:
    """One number per parameter, for each of its entries [P]."""
    return torch.cat(
        [like.new_full((p.numel(),), value) for value, p in zip(values, parameters, strict=True)]
    )


def _check_rates(optimizer: "KFAC", rates: Mapping[Tensor, float]) -> None:
    """Refuses several rates where Σ η² gᵀF̂⁻¹g is not the step's squared length by F̂."""
    blocks = optimizer.preconditioner.blocks
    independent = [block.parameters for block in blocks]
    if isinstance(optimizer.preconditioner, ChainInverse):
        independent = [[p for block in blocks for p in block.parameters]]
    if any(len({rates[p] for p in group if p in rates}) > 1 for group in independent):
        raise ConfigurationError(
            "the KL of a step is known where the parameters of a layer have one lr, and those of "
            'all layers with inverse="block-tridiagonal": give them one, or set kl_clip=math.inf'
        )


def shrinking(optimizer: "KFAC", parameters: list[Tensor]) -> list[float]:
    """−η · decay per parameter with decoupled weight decay, else zeros.

    Args:
        optimizer: Whose settings to use.
        parameters: That have gradients.

    Returns:
        One number per parameter.
    """
    if not optimizer.decoupled_weight_decay:
        return [0.0] * len(parameters)
    rates = by_parameter(optimizer.param_groups, "lr", parameters)
    decays = by_parameter(optimizer.param_groups, "weight_decay", parameters)
    return [-rate * decay for rate, decay in zip(rates, decays, strict=True)]


def _velocity(optimizer: "KFAC", parameter: Tensor) -> Tensor:
    state = optimizer.state[parameter]
    if "velocity" not in state:
        state["velocity"] = torch.zeros_like(parameter)
    velocity: Tensor = state["velocity"]
    return velocity


def _inner(
    gradients: Iterable[Tensor], natural: Sequence[Tensor], rates: Sequence[float]
) -> Tensor | float:
    """Σ η² gᵀF̂⁻¹g; a number where that is not to wait for the device."""
    pairs = zip(gradients, natural, strict=True)
    slopes = [torch.dot(g.reshape(-1), u.reshape(-1).to(g.dtype)) for g, u in pairs]
    if type(natural[0]) is Tensor and natural[0].device.type == "cpu":
        return sum(float(s) * rate**2 for s, rate in zip(slopes, rates, strict=True))
    squares = [rate**2 for rate in rates]
    inner = torch.stack([s.to(torch.promote_types(s.dtype, torch.float32)) for s in slopes])
    return (inner * inner.new_tensor(squares)).sum()
