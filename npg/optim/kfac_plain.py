"""K-FAC's step along the natural gradient: KL clip, momentum, decay; nothing read from the device.

v ← μ v − (1 − μ) ν η F̂⁻¹g,  θ ← θ + v, see :class:`npg.optim.KFAC`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npg.errors import ConfigurationError
from npg.linalg import flatten, split
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
        finite: 1 or 0: whether it may be taken at all, a scalar tensor.
        shrinking: What decoupled weight decay multiplies each parameter by, less 1.
    """

    parameters: list[Tensor]
    velocity: list[Tensor]
    finite: Tensor
    shrinking: list[float]

    def displacement(self) -> list[Tensor]:
        """By how much each parameter will move."""
        steps = torch._foreach_mul(self.velocity, self.finite)
        for p, step, factor in zip(self.parameters, steps, self.shrinking, strict=True):
            if factor:
                step.add_(p * self.finite.to(p.dtype), alpha=factor)
        return list(steps)

    def take(self) -> None:
        """Moves the parameters."""
        if any(self.shrinking):
            factors = [1 + self.finite * factor for factor in self.shrinking]
            for p, factor in zip(self.parameters, factors, strict=True):
                p.mul_(factor)
        finite = {p.dtype: self.finite.to(p.dtype) for p in self.parameters}
        for p, v in zip(self.parameters, self.velocity, strict=True):
            p.addcmul_(v, finite[p.dtype])


def motion(
    optimizer: "KFAC", gradients: Mapping[Tensor, Tensor], natural: Mapping[Tensor, Tensor]
) -> Motion:
    """Takes the natural gradient into the velocity.

    Args:
        optimizer: Whose settings and velocities to use.
        gradients: g by parameter.
        natural: F̂⁻¹g by parameter.

    Returns:
        The step. One of a gradient that is not finite moves nothing, and leaves v as it was.

    Raises:
        ConfigurationError: If the KL of the step cannot be told.
    """
    settings = optimizer.param_groups[0]
    given = settings["momentum"]
    momentum = PLAIN_MOMENTUM if given is None or given == "quadratic" else float(given)
    clip = PLAIN_KL_CLIP if settings["kl_clip"] is None else settings["kl_clip"]
    parameters = list(natural)
    rates = optimizer.by_parameter("lr", parameters)
    uniform = len(set(rates)) == 1
    if not (uniform or clip == math.inf):
        _check_rates(optimizer, dict(zip(parameters, rates, strict=True)))
    # One vector of all: a small network's step is a matter of calls, not of arithmetic.
    solved = list(natural.values())
    flat = solved[0].new_empty(sum(u.numel() for u in solved))
    torch._foreach_copy_(split(flat, parameters), solved)
    slope = flatten(gradients[p] for p in parameters)
    if not uniform:
        slope = slope * _per_entry([rate**2 for rate in rates], parameters, slope)
    inner = _wide(torch.dot(slope, flat)) * (rates[0] ** 2 if uniform else 1.0)
    finite = torch.isfinite(inner).to(inner.dtype)
    factor = finite if clip == math.inf else kl_clip_factor(inner, clip)
    # What is not finite will be multiplied by zero, which takes a number.
    flat = torch.nan_to_num_(flat, nan=0.0, posinf=0.0, neginf=0.0)
    flat.mul_(factor * ((momentum - 1) * (rates[0] if uniform else 1.0)))
    if not uniform:
        flat.mul_(_per_entry(rates, parameters, flat))
    velocity = split(flat, parameters)
    if momentum > 0:
        last = [_velocity(optimizer, p) for p in parameters]
        torch._foreach_mul_(last, 1 + finite * (momentum - 1))
        torch._foreach_add_(last, velocity)
        velocity = last
    else:
        for p in parameters:
            optimizer.state.pop(p, None)
    optimizer.leave_out(finite)
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
    rates = optimizer.by_parameter("lr", parameters)
    decays = optimizer.by_parameter("weight_decay", parameters)
    return [-rate * decay for rate, decay in zip(rates, decays, strict=True)]


def _velocity(optimizer: "KFAC", parameter: Tensor) -> Tensor:
    state = optimizer.state[parameter]
    if "velocity" not in state:
        state["velocity"] = torch.zeros_like(parameter)
    velocity: Tensor = state["velocity"]
    return velocity


def _wide(number: Tensor) -> Tensor:
    return number.to(torch.promote_types(number.dtype, torch.float32))
