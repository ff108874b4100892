"""Shortening of a preconditioned step whose quadratic model of the KL divergence is too large."""

import math
from typing import overload

import torch
from torch import Tensor

from npg.errors import ConfigurationError


@overload
def kl_clip_factor(inner: Tensor, target_kl: float) -> Tensor: ...
@overload
def kl_clip_factor(inner: float, target_kl: float) -> float: ...
def kl_clip_factor(inner: Tensor | float, target_kl: float) -> Tensor | float:
    """Returns ν = min(1, √(2δ / Σ η² gᵀF̂⁻¹g)), so that ½ ‖ν Δ‖²_F̂ ≤ δ for Δ = −η F̂⁻¹g.

    The unit is that of :func:`npg.steps.kl_step_length`, which also lengthens; codes that write
    min(1, √(κ / Σ η² gᵀF̂⁻¹g)) have κ = 2δ.

    Args:
        inner: Σ η² gᵀF̂⁻¹g over the parameter groups, a number or a scalar tensor: twice the KL
            divergence of the step by F̂'s model. With momentum it is ΔᵀF̂Δ of the whole step.
            0 and below, as rounding leaves it, clip nothing.
        target_kl: δ, in nats.

    Returns:
        ν in [0, 1], of the kind of ``inner``, without reading from the device; 0 where ``inner`` is
        not finite.

    Raises:
        ConfigurationError: If δ is not positive.

    Reference:
        Ba, Grosse and Martens, "Distributed second-order optimization using Kronecker-factored
        approximations", 2017; Wu et al., "Scalable trust-region method for deep
        reinforcement learning using Kronecker-factored approximation", 2017.
    """
    if not target_kl > 0:
        raise ConfigurationError(f"target_kl must be positive, got {target_kl}")
    return norm_constraint_factor(inner, 2 * target_kl)


@overload
def norm_constraint_factor(inner: Tensor, constraint: float) -> Tensor: ...
@overload
def norm_constraint_factor(inner: float, constraint: float) -> float: ...
def norm_constraint_factor(inner: Tensor | float, constraint: float) -> Tensor | float:
    """Returns ν = min(1, √(c / inner)), so that a squared norm of ``inner`` becomes at most c.

    Args:
        inner: Squared norm of the step, η² gᵀF̂⁻¹g, a number or a scalar tensor. 0 and below clip
            nothing.
        constraint: c, kfac-jax's ``norm_constraint``. Low values keep the step where the model
            holds, high ones leave it as it is.

    Returns:
        ν in [0, 1], of the kind of ``inner``; 0 where that is not finite.

    Raises:
        ConfigurationError: If c is not positive.
    """
    if not constraint > 0:
        raise ConfigurationError(f"constraint must be positive, got {constraint}")
    if not isinstance(inner, Tensor):
        clips = inner > constraint
        return math.sqrt(constraint / inner) if clips else float(math.isfinite(inner))
    positive = inner.clamp(min=torch.finfo(inner.dtype).tiny)
    factor = (constraint / positive).sqrt().clamp(max=1)
    return torch.where(torch.isfinite(inner), factor, torch.zeros_like(factor))
