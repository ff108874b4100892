"""Steps of a length that does not depend on the gradient's: sign descent, normalised gradient."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from npg.optim.gradient import Batch, GradientOptimizer, check_range


class SignSGD(GradientOptimizer):
    """θ ← θ − η sign(m), m ← μ m + (1 − μ) g: steepest descent by the largest entry.

    Every entry moves by η, however small its gradient; only where that is 0 it stays. The loss
    falls along the flow at the rate ‖g‖₁, but with a fixed η it does not settle.

    Args:
        model: Module, or parameters, or groups of them.
        lr: η, by which every entry moves. Let it fall to zero.
        momentum: μ; 0 takes the sign of the gradient itself.
        weight_decay: λ of an L2 term in the gradient.
        maximize: Whether to climb.
        foreach: Whether to work on all tensors of a group at once.
        parameters: Restricts a module to these of its parameters.

    Raises:
        ConfigurationError: If a setting cannot work.

    Reference:
        Bernstein et al., "signSGD: compressed optimisation for non-convex problems", 2018.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool = True,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(
            model,
            {"lr": lr, "momentum": momentum},
            parameters,
            weight_decay=weight_decay,
            maximize=maximize,
            foreach=foreach,
        )

    squares = False
    elementwise = True

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_range(group, "momentum", 0, 1)

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        signs = torch._foreach_sign(_averaged(group, batch))
        torch._foreach_add_(batch.parameters, signs, alpha=-group["lr"])


class NormalizedGradient(GradientOptimizer):
    """θ ← θ − η m / ‖m‖, m ← μ m + (1 − μ) g, ‖·‖ over all parameters of a group.

    A gradient of 0 makes no step. The loss falls along the flow at the rate ‖g‖₂, but with
    a fixed η it does not settle: the step keeps its length.

    Args:
        model: Module, or parameters, or groups of them.
        lr: η, the length of a step. Let it fall to zero.
        momentum: μ; 0 takes the gradient itself.
        weight_decay: λ of an L2 term in the gradient.
        maximize: Whether to climb.
        parameters: Restricts a module to these of its parameters.

    Raises:
        ConfigurationError: If a setting cannot work.

    Reference:
        Cortés, "Finite-time convergent gradient flows with applications to network consensus",
        2006.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(
            model,
            {"lr": lr, "momentum": momentum},
            parameters,
            weight_decay=weight_decay,
            maximize=maximize,
        )

    squares = False

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_range(group, "momentum", 0, 1)

    def _batches(self, group: dict[str, Any]) -> list[Batch]:
        """One batch, whatever the steps: the norm is that of all."""
        return Batch.joined(super()._batches(group))

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        mean = _averaged(group, batch)
        norm = _norm(mean)
        # 0 / 0 is no direction; nothing is read from the device to find out.
        factor = torch.where(norm > 0, -group["lr"] / norm, 0.0)
        for parameter, direction in zip(batch.parameters, mean, strict=True):
            parameter.addcmul_(direction, factor.to(direction.dtype))


def _averaged(group: dict[str, Any], batch: Batch) -> list[Tensor]:
    """The running mean of the gradients, or these themselves where there is no momentum."""
    if group["momentum"] == 0:
        return batch.gradients
    mean = batch.remembered("mean")
    torch._foreach_lerp_(mean, batch.gradients, 1 - group["momentum"])
    return mean


def _norm(tensors: list[Tensor]) -> Tensor:
    """‖·‖ of all, a scalar, in float64 where squares in the tensors' precision might be lost."""
    if type(tensors[0]) is Tensor and tensors[0].is_cpu:
        norms = [norm.double() for norm in torch._foreach_norm(tensors)]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        if 1e-15 < norm < 1e15:  # in the host's memory this waits for nothing
            return norm
    wide = [torch.linalg.vector_norm(t, dtype=torch.float64) for t in tensors]
    norm = torch.linalg.vector_norm(torch.stack(wide))
    return norm
