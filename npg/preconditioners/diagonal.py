"""Preconditioners that see every entry by itself: Adam's and its kin, and Sophia's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npg.preconditioners.base import TensorPreconditioner, remembered


class MeanSquares(TensorPreconditioner):
    """P = (s / c)^(k/2) + ε, s ← a s + w x² for every x that comes.

    Adagrad's has a = w = 1; RMSprop's a = β, w = 1 − β; Adam's also divides by c = 1 − βᵗ;
    AdaHessian's x are no gradients but diagonals of the Hessian.

    Args:
        states: A dictionary per tensor.
        name: Under which s is kept there.
        keep: a.
        weight: w.
        epsilon: ε.
        correction: c.
        power: k; 1 divides by the root of s, 0 by nothing.
    """

    def __init__(
        self,
        states: Sequence[dict[str, Any]],
        name: str,
        *,
        keep: float,
        weight: float,
        epsilon: float,
        correction: float = 1.0,
        power: float = 1.0,
    ) -> None:
        super().__init__(states)
        self.names = (name,)  # type: ignore[misc]
        self.name = name
        self.keep = keep
        self.weight = weight
        self.epsilon = epsilon
        self.correction = correction
        self.power = power

    def update(self, statistics: list[Tensor]) -> None:
        """Lets x enter s."""
        squares = remembered(self.states, self.name, statistics)
        if self.keep != 1:
            torch._foreach_mul_(squares, self.keep)
        torch._foreach_addcmul_(squares, statistics, statistics, self.weight)

    def denominators(self) -> list[Tensor]:
        """P, new tensors."""
        roots = list(torch._foreach_sqrt([state[self.name] for state in self.states]))
        if self.correction != 1:
            torch._foreach_div_(roots, self.correction**0.5)
        if self.power != 1:
            torch._foreach_pow_(roots, self.power)
        torch._foreach_add_(roots, self.epsilon)
        return _above_zero(roots)

    def apply(self, gradients: list[Tensor]) -> list[Tensor]:
        """Divides by P."""
        return list(torch._foreach_div(gradients, self.denominators()))


class ClippedCurvature(TensorPreconditioner):
    """clip(g / max(γ h, ε), ±1), h ← β h + (1 − β) ĥ for every estimate ĥ of a diagonal.

    Where h is small or negative, where a division would be no descent, it is the sign of g.

    Args:
        states: A dictionary per tensor.
        decay: β.
        gamma: γ. High values clip less.
        epsilon: ε.

    Reference:
        Liu et al., "Sophia: a scalable stochastic second-order optimizer for language model
        pre-training", 2023.
    """

    names = ("curvature",)

    def __init__(
        self, states: Sequence[dict[str, Any]], *, decay: float, gamma: float, epsilon: float
    ) -> None:
        super().__init__(states)
        self.decay = decay
        self.gamma = gamma
        self.epsilon = epsilon

    def update(self, statistics: list[Tensor]) -> None:
        """Lets ĥ enter h."""
        curvatures = remembered(self.states, "curvature", statistics)
        torch._foreach_lerp_(curvatures, statistics, 1 - self.decay)

    def denominators(self, gradients: list[Tensor]) -> list[Tensor]:
        """max(γ h, ε), new tensors."""
        curvatures = remembered(self.states, "curvature", gradients)
        result = list(torch._foreach_mul(curvatures, self.gamma))
        torch._foreach_clamp_min_(result, self.epsilon)
        return _above_zero(result)

    def apply(self, gradients: list[Tensor]) -> list[Tensor]:
        """Divides, and clips what is left."""
        ratios = list(torch._foreach_div(gradients, self.denominators(gradients)))
        torch._foreach_clamp_min_(ratios, -1.0)
        torch._foreach_clamp_max_(ratios, 1.0)
        return ratios


def _above_zero(denominators: list[Tensor]) -> list[Tensor]:
    """In float16 an ε of 1e-8 is 0, and 0 / 0 no step."""
    half = [d for d in denominators if d.dtype == torch.float16]
    if half:
        torch._foreach_clamp_min_(half, torch.finfo(torch.float16).tiny)
    return denominators
