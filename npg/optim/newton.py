"""Newton and Gauss–Newton steps with the dense matrix, for small models."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from npg import curvature
from npg.curvature import CurvatureMatrix, Hessian
from npg.errors import ConfigurationError
from npg.linalg.trust_region_subproblem import quadratic_in_ball
from npg.optim.base import CLOSURE_ADVICE, Prediction, StepReport
from npg.optim.iterated import IteratedOptimizer, check_dense_size
from npg.optim.objective import UNRESOLVED, Evaluation, Objective
from npg.steps.radius import LEAST_RATIO, next_radius, reduction_ratio, resolved_radius


class DenseOptimizer(IteratedOptimizer):
    """θ ← θ − α (C + λI)⁻¹ g, with λ such that ‖(C + λI)⁻¹ g‖ is at most the trust region's radius.

    Args:
        model: Module to train, or its parameters.
        lr: α, multiplier of the step; 1 is the method's own.
        radius: First radius, in the units of the parameters; it adapts. Small values begin like
            gradient descent. Default: the length of the first undamped step.
        max_trials: Radii that one step tries before the parameters stay as they were. The matrix
            is not computed again for them.
        iterations: Per step, see :class:`IteratedOptimizer`.
        deterministic: Whether to check the closure, see there.
        parameters: Restricts a module to a part of its parameters.

    Raises:
        ConfigurationError: If a setting cannot work, or there are too many parameters.
    """

    keeps_graph: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1.0,
        *,
        radius: float | None = None,
        max_trials: int = 30,
        iterations: int = 1,
        deterministic: bool = True,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        if radius is not None and not 0 < radius < math.inf:
            raise ConfigurationError(f"radius must be positive and finite, got {radius}")
        if max_trials < 1:
            raise ConfigurationError(f"max_trials must be at least 1, got {max_trials}")
        super().__init__(
            model,
            {"lr": lr},
            iterations=iterations,
            deterministic=deterministic,
            parameters=parameters,
        )
        self.max_trials = max_trials
        self.extra["radius"] = radius or 0.0  # 0: not known yet

    def check_groups(self, groups: list[dict[str, Any]]) -> None:
        """Refuses groups that cannot work, or have too many parameters for a dense matrix."""
        super().check_groups(groups)
        check_dense_size(self, "NewtonCG, which needs its products alone")

    @abstractmethod
    def matrix(self, loss: Tensor, prediction: Prediction | None) -> CurvatureMatrix:
        """C, from the loss and the prediction with their graph."""

    def dense(self, start: Evaluation) -> Tensor:
        """C [P, P] in float64, where an evaluation was made."""
        assert start.graph is not None
        with self.graph_needed():
            return self.matrix_over_ranks(self.matrix(*start.graph)).to_dense().double()

    def advance(self, objective: Objective, start: Evaluation) -> tuple[StepReport, Evaluation]:
        """Tries steps of falling length, until one lowers the loss as it should."""
        dense, gradient, rates = self.dense(start), start.gradient.double(), self.rates()
        report = StepReport(
            start.value,
            start.value,
            accepted=False,
            reason="curvature is not finite",
            kl=0.0,
            cg_iterations=len(gradient),
        )
        if not bool(torch.isfinite(dense).all()):
            return report, start
        dtype = start.gradient.dtype
        quadratic = quadratic_in_ball(dense, gradient, dtype)
        first = resolved_radius(self.extra["radius"] or quadratic.natural_radius(), dtype)
        radius, ratio, reason = first, math.nan, "no trial lowered the loss"
        for _ in range(self.max_trials):
            found = quadratic.minimum(radius)
            step = found.step * rates
            objective.move(step.to(dtype), 1.0)
            moved = objective.displacement()
            if not bool(torch.isfinite(moved).all() and moved.any()):
                reason = UNRESOLVED if not bool(moved.any()) else "the step is not finite"
                break
            end = objective.gradient(1.0, step.to(dtype))
            predicted = float(gradient @ step + (step @ (dense @ step)) / 2)
            ratio = reduction_ratio(end.value - start.value, predicted)
            if self._hidden(start, end, predicted):
                ratio = 1.0
            if not bool(torch.isfinite(end.gradient).all()):
                ratio = -math.inf
            radius = next_radius(radius, found.length, ratio, bounded=found.bounded)
            radius = resolved_radius(radius, dtype)
            if ratio > LEAST_RATIO:
                self.extra["radius"] = radius
                accepted = replace(
                    report,
                    loss_after=end.value,
                    accepted=True,
                    reason="at the radius" if found.bounded else "undamped",
                    kl=math.nan,
                    fraction=1.0,
                    step_length=1.0,
                    damping=found.damping,
                    reduction_ratio=ratio,
                )
                return accepted, end
        # The last radii say more of this one point than of the next.
        self.extra["radius"] = next_radius(first, first, -math.inf, bounded=True)
        failed = replace(
            report,
            reason=reason,
            damping=found.damping,
            reduction_ratio=ratio,
        )
        return failed, start

    def _hidden(self, start: Evaluation, end: Evaluation, predicted: float) -> bool:
        """Whether the gradient fell, and the loss has too few digits to show that."""
        rounding = self.rounding(start)
        change = abs(end.value - start.value)
        lengths = [float(torch.linalg.vector_norm(e.gradient)) for e in (start, end)]
        return change <= rounding and -rounding <= predicted < 0 and lengths[1] < lengths[0]


class Newton(DenseOptimizer):
    """θ ← θ − α (H + λI)⁻¹ g with the dense Hessian H, for small models.

    λ ≥ 0 is the least for which H + λI is positive semi-definite and the step no longer than the
    trust region's radius. So the step leads down where H is indefinite, too, and along its most
    negative curvature where the gradient is silent about it. One step computes H once, by P
    backward passes, whatever the number of trials.

    Args:
        model: Module to train, or its parameters.
        lr: α, multiplier of the step; 1 is Newton's own.
        radius: First radius of the trust region, in the units of the parameters; it adapts: a
            quarter of the step where the loss falls by less than a quarter of what the quadratic
            model promises, twice where by more than three. Small values begin like gradient
            descent. Default: the length of |H|⁻¹g at the first step.
        **options: ``max_trials``, ``iterations``, ``deterministic`` and ``parameters``, as for
            :class:`DenseOptimizer`.

    Reference:
        Moré and Sorensen, "Computing a trust region step", 1983; Nocedal and Wright, "Numerical
        Optimization", 2006, sections 4.1 and 4.3.
    """

    def matrix(self, loss: Tensor, prediction: Prediction | None) -> CurvatureMatrix:
        """The Hessian."""
        return Hessian(self.tensors(), lambda: loss)

    def iterate(self, objective: Objective, start: Evaluation) -> tuple[StepReport, Evaluation]:
        """Takes one iteration, and says of a zero gradient when it is that of a saddle."""
        report, point = super().iterate(objective, start)
        if report.reason == "zero gradient":
            values = torch.linalg.eigvalsh(self.dense(start))
            if values[0] < -1e-6 * values[-1].abs():
                reason = "zero gradient, at a saddle: the Hessian has a negative eigenvalue"
                report = replace(report, reason=reason)
        return report, point


class GaussNewton(DenseOptimizer):
    """θ ← θ − α (G + λI)⁻¹ g with the dense Gauss–Newton matrix G: Levenberg–Marquardt.

    λ ≥ 0 is the least with which the step is no longer than the trust region's radius, Moré's form
    of the method. For a loss Σ r² of residuals r, which are the prediction, G = 2 JᵀJ. A singular G
    takes the shortest of all its steps.

    Args:
        model: Module to train, or its parameters.
        lr: α, multiplier of the step; 1 is Gauss and Newton's own.
        radius: First radius of the trust region, as for :class:`Newton`.
        **options: ``max_trials``, ``iterations``, ``deterministic`` and ``parameters``, as for
            :class:`DenseOptimizer`.

    Reference:
        Marquardt, "An algorithm for least-squares estimation of nonlinear parameters", 1963; Moré,
        "The Levenberg–Marquardt algorithm: implementation and theory", 1978.
    """

    needs_prediction: ClassVar[bool] = True

    def matrix(self, loss: Tensor, prediction: Prediction | None) -> CurvatureMatrix:
        """The Gauss–Newton matrix of the prediction."""
        if not isinstance(prediction, Tensor):
            raise ConfigurationError(f"GaussNewton needs a tensor prediction: {CLOSURE_ADVICE}")
        return curvature.GaussNewton(self.tensors(), prediction, loss)
