"""Newton's method by conjugate gradient: Hessian-free steps with Levenberg–Marquardt damping."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from npg.curvature import CurvatureMatrix, GaussNewton
from npg.errors import ConfigurationError
from npg.likelihoods import as_distribution
from npg.optim.base import Closure, FunctionOptimizer, Prediction, StepReport
from npg.optim.descent import Descender, Evaluated
from npg.optim.gradient import check_range
from npg.optim.loss_curvature import LossMatrix, curvature_and_gradient
from npg.optim.newton_direction import newton_direction, predicted_change
from npg.optim.objective import Evaluation, Objective, rounding_of
from npg.optim.step_factors import StepFactors, generator_like
from npg.preconditioners import ConjugateGradientInverse, KroneckerPreconditioner
from npg.steps import Armijo, CGBacktracking, LevenbergMarquardt


class NewtonCG(FunctionOptimizer):
    """θ ← θ − α (C + λI)⁻¹ g with C the Gauss–Newton matrix, Hessian or Fisher matrix of a batch.

    Conjugate gradient solves the system by products with C. It starts from the last step's
    solution, stops when it makes little progress, and of its iterates the one is taken before
    which the loss is not lower. λ follows the ratio of actual to predicted reduction, and α
    shrinks until the loss falls. All evaluations of a step see the same random numbers and the
    same running statistics.

    The defaults are Martens', but for a λ that begins at 0.1 instead of 1 and moves by 2 instead
    of 3/2. To find the minimum of a function to many digits let λ vanish:
    ``matrix="hessian", damping=0, cg_tolerance=None, cg_progress_tolerance=None,
    warm_start=None, cg_backtracking=False`` converges quadratically.

    Args:
        model: Module to train, or its parameters.
        lr: Multiplier of the step; 1 is Newton's own.
        matrix: ``"gauss-newton"``, that of the loss in the prediction, a tensor. ``"fisher"``,
            that of a prediction which is a Distribution, or a tensor that ``likelihood`` reads:
            both are positive semi-definite for the usual losses. ``"hessian"``, for which a
            closure may return the loss alone; where its curvature is not positive, conjugate
            gradient ends with what it has, or with a step along the gradient.
        damping: First λ, in the units of C; it adapts by ``damping_factor`` at every step. 0 is
            none, and none ever.
        damping_factor: Above 1; how fast λ adapts.
        min_damping: What λ never falls below. Where a batch says too little about the parameters,
            a floor keeps the step from fitting its noise.
        cg_max_steps: Bound on the products per step. Few regularise: the quadratic model's
            minimum is often further away than the model holds.
        cg_tolerance: Relative residual at which conjugate gradient stops. ``None`` is
            min(½, √‖g‖): loose at first, and ever tighter towards a minimum.
        cg_progress_tolerance: Martens' stop, see :func:`npg.linalg.cg`; ``None`` switches it off.
        cg_backtracking: Whether to choose among the iterates, for an evaluation or two per step.
        cg_preconditioner: ``"kfac"`` gathers Kronecker factors of the same batch, with which
            conjugate gradient needs a third of the products on a deep autoencoder. It needs the
            module, and ``likelihood`` unless the prediction is a Distribution. None: no
            preconditioner.
        kronecker_cg_max_steps: Bound on the products where Kronecker factors that need no
            likelihood precondition, as they then do in fully connected networks with one output;
            3 go as far as 6 to 20 without them. ``None`` never does.
        warm_start: What the last solution is multiplied by, in [0, 1]. ``None`` or 0 starts from
            zero, which saves a product.
        line_search_max_iter: Halvings before the parameters are left as they were.
        likelihood: What a tensor prediction parametrises, see
            :func:`npg.likelihoods.as_distribution`.
        deterministic: Whether to check, at the first step and when a search fails, that the
            closure returns the same loss twice.
        seed: Seeds the labels that Kronecker factors draw.
        parameters: Restricts a module to a part of its parameters.

    Reference:
        Martens, "Deep learning via Hessian-free optimization", 2010; Martens and Grosse,
        "Optimizing neural networks with Kronecker-factored approximate curvature", 2015; Dembo
        and Steihaug, "Truncated-Newton algorithms for large-scale unconstrained optimization",
        1983, for the tolerance.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float = 1.0,
        matrix: LossMatrix = "gauss-newton",
        damping: float = 0.1,
        damping_factor: float = 2.0,
        min_damping: float = 1e-8,
        cg_max_steps: int = 250,
        cg_tolerance: float | None = 1e-10,
        cg_progress_tolerance: float | None = 5e-4,
        cg_backtracking: bool = True,
        cg_preconditioner: Literal["kfac"] | None = None,
        kronecker_cg_max_steps: int | None = None,
        warm_start: float | None = 0.95,
        line_search_max_iter: int = 20,
        likelihood: str | Callable[[Tensor], Distribution] | None = None,
        deterministic: bool = True,
        seed: int = 0,
        parameters: Iterable[Tensor] | None = None,
    ) -> None:
        if matrix not in ("gauss-newton", "hessian", "fisher"):
            raise ConfigurationError(
                f'matrix must be "gauss-newton", "hessian" or "fisher", got {matrix!r}'
            )
        if cg_preconditioner not in (None, "kfac"):
            raise ConfigurationError(
                f'cg_preconditioner must be "kfac" or None, got {cg_preconditioner!r}'
            )
        check_range({"lr": lr}, "lr", 0, math.inf)
        limits = (cg_max_steps, kronecker_cg_max_steps, line_search_max_iter)
        if any(limit is not None and limit < 1 for limit in limits):
            raise ConfigurationError(
                "cg_max_steps, kronecker_cg_max_steps and line_search_max_iter must be at least 1, "
                f"got {cg_max_steps}, {kronecker_cg_max_steps} and {line_search_max_iter}"
            )
        if not 0 <= (warm_start or 0.0) <= 1:
            raise ConfigurationError(f"warm_start must be in [0, 1] or None, got {warm_start}")
        if kronecker_cg_max_steps is not None and damping == 0:
            raise ConfigurationError("kronecker_cg_max_steps needs a damping above 0, got 0")
        if not (cg_tolerance is None or cg_tolerance >= 0):
            raise ConfigurationError(
                f"cg_tolerance must not be negative, or be None, got {cg_tolerance}"
            )
        self.matrix: LossMatrix = matrix
        self.factors: StepFactors | None = None
        super().__init__(model, {"lr": lr}, parameters)
        self.schedule = (
            LevenbergMarquardt(damping, damping_factor, min_damping) if damping != 0 else None
        )
        self.inverse = ConjugateGradientInverse(
            cg_max_steps, cg_tolerance or 0.0, cg_progress_tolerance
        )
        self.cg_tolerance = cg_tolerance
        self.cg_backtracking = cg_backtracking
        self.kronecker_cg_max_steps = kronecker_cg_max_steps
        self.warm_start = warm_start or 0.0
        self.search = Armijo(max_evaluations=line_search_max_iter)
        self.likelihood = likelihood
        self.deterministic = deterministic
        self.solution: Tensor | None = None
        self.generator: torch.Generator | None = None
        if cg_preconditioner == "kfac":
            self.generator = generator_like(self.tensors(), seed)
            self._factorise()

    keeps_graph: ClassVar[bool] = True

    @property
    def needs_prediction(self) -> bool:  # type: ignore[override]
        """Whether a closure has to return the prediction, too."""
        return self.matrix != "hessian" or self.factors is not None

    def _factorise(self) -> None:
        """Begins to gather Kronecker factors of what the groups hold now."""
        assert self.generator is not None
        # Those of another batch, at other parameters, are not of this system.
        self.factors = StepFactors(self.module, self.tensors(), self.generator, decay=0.0)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters; Kronecker factors are gathered anew.

        Args:
            param_group: ``params`` and what differs from the defaults.
        """
        super().add_param_group(param_group)
        if self.factors is not None:
            self._factorise()

    def step(self, closure: Closure) -> StepReport:  # type: ignore[override]
        """Takes one step.

        Args:
            closure: Runs the forward pass and returns (loss, prediction); for the Hessian the loss
                is enough. No backward.

        Returns:
            What was done. What is not finite, and a search that fails, leave the parameters as
            they were, bit for bit.

        Raises:
            ConfigurationError: If the closure is of another kind, its prediction does not fit the
                matrix, or it disagrees with itself.
        """
        objective = Objective(self, closure)
        if self.factors is not None:
            self.factors.listen()
        try:
            evaluated = objective.evaluate()
            if self.deterministic and not self.extra["steps"]:
                objective.check_again(float(evaluated[0].detach()))
            return self._advance(objective, evaluated)[0]
        finally:
            if self.factors is not None:
                self.factors.pause()

    def iterate(self, objective: Objective, start: Evaluation) -> tuple[StepReport, Evaluation]:
        """Takes one iteration from where the parameters are; each ends where the next one begins.

        Args:
            objective: What to minimise.
            start: Its value and gradient there, with its graph. There is no choice among conjugate
                gradient's iterates, since trials are evaluated with their graph.

        Returns:
            What was done, and value and gradient where the parameters are then.
        """
        assert start.graph is not None
        before = objective.evaluations
        report, evaluated = self._advance(objective, start.graph, graphs=True)
        report = replace(report, evaluations=objective.evaluations - before)
        return report, objective.differentiated(*evaluated) if report.accepted else start

    def _advance(
        self, objective: Objective, evaluated: Evaluated, *, graphs: bool = False
    ) -> tuple[StepReport, Evaluated]:
        """Takes one step from an evaluation; returns the last one where ``graphs`` are kept."""
        loss_tensor, output = evaluated
        own, gradient = curvature_and_gradient(
            self, self.matrix, objective.parameters, loss_tensor, output, self.likelihood
        )
        matrix = self.matrix_over_ranks(own)
        prediction = loss_tensor if output is None else output  # nobody asks for it again
        start = self.start_from(loss_tensor, prediction, gradient)
        loss, norm = start.loss, start.gradient_norm
        obstacle = start.obstacle or self.standstill()
        if obstacle:
            known = {"gradient_norm": norm, "evaluations": objective.evaluations}
            return self.skip(loss, obstacle, **known), evaluated
        damping = 0.0 if self.schedule is None else self.schedule.damping
        path = CGBacktracking() if self.cg_backtracking and not graphs else None
        inverse = self._inverse(objective.parameters, own, output, damping, norm)
        warm = self._start_of_solution(gradient)
        solution = newton_direction(inverse, matrix, damping, gradient, warm, path)
        if not bool(solution.x.any()):
            reason = f"no direction: {solution.reason}"
            known = {"gradient_norm": norm, "evaluations": objective.evaluations}
            return self.skip(loss, reason, **known), evaluated

        rates = self.rates()
        predicted = predicted_change(matrix, gradient, solution, rates)
        descender = Descender(objective, self.search, lambda x: x * -1.0 * rates, graphs)
        found = descender.descend(loss, gradient, solution.x, path)
        ratio = math.nan
        if self.schedule is not None:
            rounding = rounding_of(loss, gradient.dtype)
            ratio = self.schedule.update(found.first - loss, predicted, rounding)
        point = found.point
        self.solution = solution.x if point is not None and self.warm_start else None
        if point is None:
            self.extra["rejected"] += 1
            if self.deterministic:
                objective.check_again(loss)
        report = StepReport(
            loss,
            loss if point is None else point.value,
            accepted=point is not None,
            reason=found.reason or solution.reason,
            kl=0.0 if point is None else math.nan,
            fraction=0.0 if point is None else point.step,
            step_length=1.0,
            gradient_norm=norm,
            cg_iterations=solution.iterations,
            cg_residual=solution.residual,
            damping=damping,
            reduction_ratio=ratio,
            evaluations=objective.evaluations,
        )
        return report, found.evaluated or evaluated

    def _start_of_solution(self, gradient: Tensor) -> Tensor | None:
        """The last solution, taken once and shortened; None where there is none that fits."""
        last, self.solution = self.solution, None
        if last is None or last.shape != gradient.shape:
            return None
        return last.to(gradient) * self.warm_start

    def _inverse(
        self,
        parameters: Sequence[Tensor],
        matrix: CurvatureMatrix,
        output: Prediction | None,
        damping: float,
        norm: float,
    ) -> ConjugateGradientInverse:
        """Conjugate gradient, preconditioned where that was asked for and can be done."""
        inverse = self.inverse
        if self.cg_tolerance is None:
            inverse = replace(inverse, tolerance=min(0.5, norm**0.5))
        if self.factors is not None and output is not None:
            with torch.enable_grad():
                prediction = as_distribution(output, self.likelihood)
            self.factors.fisher.distributed = self.distributed
            factored = self.factors.inverse(parameters, prediction, damping)
            return replace(inverse, preconditioner=factored)
        if (
            self.kronecker_cg_max_steps is None
            or not isinstance(matrix, GaussNewton)
            or not KroneckerPreconditioner.applies(matrix)
        ):
            return inverse
        return replace(
            inverse,
            max_iterations=self.kronecker_cg_max_steps,
            preconditioner=KroneckerPreconditioner(matrix, damping, self.distributed),
        )

    def state_dict(self) -> dict[str, Any]:
        """torch's state, the counters, the damping, and what the next step starts from."""
        if self.schedule is not None:
            self.extra["damping"] = self.schedule.damping
        state = super().state_dict()
        if self.solution is not None:
            state["solution"] = self.solution
        if self.generator is not None:  # the factors themselves are gathered anew in every step
            state["generator"] = self.generator.get_state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        own = dict(state_dict)
        solution, generator = own.pop("solution", None), own.pop("generator", None)
        super().load_state_dict(own)
        self.solution = None if solution is None else solution.clone()
        if self.schedule is not None:
            damping = self.extra.get("damping", self.schedule.damping)
            self.schedule.damping = max(damping, self.schedule.minimum)
        if self.generator is not None and generator is not None:
            self.generator.set_state(generator.cpu())
