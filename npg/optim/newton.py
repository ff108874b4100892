"""Newton and Gauss–Newton steps with the dense matrix, for small models."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from npg import curvature
from npg.curvature import CurvatureMatrix, Hessian
from npg.errors import ConfigurationError
from npg.linalg import flatten
from npg.linalg.quadratic_in_ball import BallMinimum, quadratic_in_ball
from npg.optim.base import (
    CLOSURE_ADVICE,
    Closure,
    FunctionOptimizer,
    Prediction,
    Start,
    StepReport,
)
from npg.optim.objective import Objective
from npg.preconditioners.implicit import DENSE_LIMIT
from npg.steps.radius import LEAST_RATIO, next_radius, reduction_ratio

# Units in the last place by which two values of a loss may differ that are the same.
SAME = 2
ZERO_GRADIENT = "zero gradient"
FAILED = "no trial lowered the loss"

Evaluated = tuple[Tensor, Prediction | None]


class DenseOptimizer(FunctionOptimizer):
    """θ ← θ − α (C + λI)⁻¹ g, with λ such that ‖(C + λI)⁻¹ g‖ is at most the trust region's radius.

    Args:
        model: Module to train, or its parameters.
        lr: α, multiplier of the step; 1 is the method's own.
        radius: First radius, in the units of the parameters; it adapts. Small values begin like
            gradient descent. Default: the length of the first undamped step.
        max_trials: Radii that one step tries before the parameters stay as they were. The matrix
            is not computed again for them.
        deterministic: Whether the first step, and any that fails, evaluates the loss twice at the
            same parameters, and raises if the closure disagrees with itself.
        parameters: Restricts a module to a part of its parameters.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1.0,
        *,
        radius: float | None = None,
        max_trials: int = 30,
        deterministic: bool = True,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        if not lr > 0:
            raise ConfigurationError(f"lr must be positive, got {lr}")
        if radius is not None and not 0 < radius < math.inf:
            raise ConfigurationError(f"radius must be positive and finite, got {radius}")
        if max_trials < 1:
            raise ConfigurationError(f"max_trials must be at least 1, got {max_trials}")
        super().__init__(model, {"lr": lr}, parameters)
        self.max_trials = max_trials
        self.deterministic = deterministic
        self.extra["radius"] = radius or 0.0  # 0: not known yet

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters.

        Args:
            param_group: ``params`` and what differs from the defaults.

        Raises:
            ConfigurationError: If that makes too many for a dense matrix.
        """
        super().add_param_group(param_group)
        size = sum(p.numel() for p in self.tensors())
        if size > DENSE_LIMIT:
            self.param_groups.pop()
            raise ConfigurationError(
                f"{type(self).__name__}: a dense matrix of {size} parameters is too large (limit "
                f"{DENSE_LIMIT}): use NewtonCG, which needs its products alone"
            )

    def step(self, closure: Closure) -> StepReport:  # type: ignore[override]
        """Takes one step.

        Args:
            closure: Runs the forward pass and returns the loss, or (loss, prediction); no backward.

        Returns:
            What was done. What is not finite, and a step that no radius makes lower the loss, leave
            the parameters as they were, bit for bit.

        Raises:
            ConfigurationError: If the closure disagrees with itself, or is of another kind.
        """
        objective = Objective(self, closure)
        here = objective.evaluate()
        return self._iterate(objective, here)[0]

    def _iterate(
        self, objective: Objective, here: Evaluated, *, hand_over: bool = False
    ) -> tuple[StepReport, Evaluated | None]:
        """Takes one step from where the objective was evaluated.

        Args:
            objective: What to minimise.
            here: Its loss and prediction, with their graph, which is used up.
            hand_over: Whether trials keep a graph, so that the next step can begin where one ends.

        Returns:
            What was done; and the evaluation where the parameters are now, if there is one.
        """
        loss_tensor, prediction = here
        if self.deterministic and self.extra["steps"] == 0:
            objective.check_again(float(loss_tensor.detach()))
        parameters = objective.parameters
        with self.graph_needed():
            matrix, gradient = self._matrix(parameters, loss_tensor, prediction)
        start = self.start_from(
            loss_tensor, loss_tensor if prediction is None else prediction, gradient
        )
        finite = start.obstacle in ("", ZERO_GRADIENT)
        dense = matrix.to_dense().double() if finite else gradient
        obstacle = start.obstacle
        if finite and not bool(torch.isfinite(dense).all()):
            obstacle = "curvature is not finite"
        elif obstacle == ZERO_GRADIENT and _leads_down(dense):
            obstacle += ", at a saddle: the Hessian has a negative eigenvalue"
        if obstacle:
            report = self.skip(
                start.loss,
                obstacle,
                gradient_norm=start.gradient_norm,
                evaluations=objective.evaluations,
            )
            return report, None
        return self._try(objective, start, dense, hand_over=hand_over)

    def _try(
        self, objective: Objective, start: Start, dense: Tensor, *, hand_over: bool
    ) -> tuple[StepReport, Evaluated | None]:
        """Tries steps of falling length, until one lowers the loss as it should."""
        gradient, rates = start.gradient.double(), self.rates()
        dtype = start.gradient.dtype
        quadratic = quadratic_in_ball(dense, gradient, dtype)
        first = radius = self.extra["radius"] or quadratic.natural_radius()
        rounding = SAME * torch.finfo(dtype).eps * abs(start.loss)
        objective.remember()
        accepted = False
        try:
            for _ in range(self.max_trials):
                found = quadratic.minimum(radius)
                step = found.step * rates
                objective.move(step.to(start.gradient), 1.0)
                end: Evaluated | None = objective.evaluate() if hand_over else None
                value = float(end[0].detach()) if end else objective.value()
                predicted = float(gradient @ step + (step @ (dense @ step)) / 2)
                ratio = reduction_ratio(value - start.loss, predicted, rounding)
                radius = next_radius(radius, found.length, ratio, bounded=found.bounded)
                if ratio > LEAST_RATIO:
                    accepted = True
                    break
        finally:
            if not accepted:
                objective.restore()
        if not accepted:
            # These radii say more of this one point than of the next.
            radius = next_radius(first, first, ratio, bounded=True)
            self.extra["rejected"] += 1
            if self.deterministic:
                objective.check_again(start.loss)
        self.extra["radius"] = radius
        report = StepReport(
            start.loss,
            value if accepted else start.loss,
            accepted=accepted,
            reason=_reason(found, value - start.loss, rounding) if accepted else FAILED,
            step_length=1.0,
            fraction=float(accepted),
            gradient_norm=start.gradient_norm,
            damping=found.damping,
            reduction_ratio=ratio,
            evaluations=objective.evaluations,
        )
        return report, end if accepted else None

    @abstractmethod
    def _matrix(
        self, parameters: list[Tensor], loss: Tensor, prediction: Prediction | None
    ) -> tuple[CurvatureMatrix, Tensor]:
        """C, and the flat gradient [P]."""


def _leads_down(matrix: Tensor) -> bool:
    """Whether a matrix says that the loss falls from where its gradient is zero."""
    values = torch.linalg.eigvalsh(matrix)
    return bool(values[0] < -1e-6 * values[-1].abs())


def _reason(found: BallMinimum, change: float, rounding: float) -> str:
    """How an accepted step ended."""
    if abs(change) <= rounding:
        return "the loss changed by rounding alone"
    return "at the radius" if found.bounded else "undamped"


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
        **options: ``max_trials``, ``deterministic`` and ``parameters``, as for
            :class:`DenseOptimizer`.

    Reference:
        Moré and Sorensen, "Computing a trust region step", 1983; Nocedal and Wright, "Numerical
        Optimization", 2006, sections 4.1 and 4.3.
    """

    needs_prediction: ClassVar[bool] = False

    def _matrix(
        self, parameters: list[Tensor], loss: Tensor, prediction: Prediction | None
    ) -> tuple[CurvatureMatrix, Tensor]:
        matrix = Hessian(parameters, lambda: loss)
        gradient = flatten(piece.detach() for piece in matrix.gradient)
        if not bool(gradient.any()):
            self.gradient(loss, parameters)  # says so where the loss knows none of them
        return matrix, gradient


class GaussNewton(DenseOptimizer):
    """θ ← θ − α (G + λI)⁻¹ g with the dense Gauss–Newton matrix G: Levenberg–Marquardt.

    λ ≥ 0 is the least with which the step is no longer than the trust region's radius, Moré's form
    of the method. For a loss Σ r² of residuals r, which are the prediction, G = 2 JᵀJ. A singular G
    takes the shortest of all its steps.

    Args:
        model: Module to train, or its parameters.
        lr: α, multiplier of the step; 1 is Gauss and Newton's own.
        radius: First radius of the trust region, as for :class:`Newton`.
        **options: ``max_trials``, ``deterministic`` and ``parameters``, as for
            :class:`DenseOptimizer`.

    Reference:
        Marquardt, "An algorithm for least-squares estimation of nonlinear parameters", 1963; Moré,
        "The Levenberg–Marquardt algorithm: implementation and theory", 1978.
    """

    def _matrix(
        self, parameters: list[Tensor], loss: Tensor, prediction: Prediction | None
    ) -> tuple[CurvatureMatrix, Tensor]:
        if not isinstance(prediction, Tensor):
            raise ConfigurationError(f"GaussNewton needs a tensor prediction: {CLOSURE_ADVICE}")
        matrix = curvature.GaussNewton(parameters, prediction, loss)
        return matrix, self.gradient(loss, parameters)
