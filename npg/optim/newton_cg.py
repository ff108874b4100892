"""Hessian-free Gauss–Newton steps with Levenberg–Marquardt damping."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from npg.curvature import GaussNewton
from npg.curvature.chain_operations import ACCUMULATE
from npg.errors import ConfigurationError
from npg.optim.base import CLOSURE_ADVICE, Closure, FunctionOptimizer, StepReport
from npg.preconditioners import ConjugateGradientInverse, KroneckerPreconditioner
from npg.steps import LevenbergMarquardt, Trial, TrustRegion


class NewtonCG(FunctionOptimizer):
    """θ ← θ − α (G + λI)⁻¹ g with G the Gauss–Newton matrix of the loss on the whole batch.

    A critic is a least-squares problem: a few of these steps replace hundreds of minibatches.
    λ follows the ratio of actual to predicted reduction; α halves until the loss falls.

    Args:
        model: Module to train, or its parameters.
        lr: Multiplier of the step; 1 is Gauss–Newton's own.
        damping: First λ, in the units of G; it adapts by ``damping_factor`` at every step.
        damping_factor: Above 1; how fast λ adapts.
        min_damping: What λ never falls below. Where a batch says too little about the parameters,
            a floor keeps the step from fitting its noise.
        cg_max_steps: Bound on the products per step. Few regularise: the quadratic model's
            minimum is often further away than the model holds.
        kronecker_cg_max_steps: The same where Kronecker factors precondition conjugate gradient,
            as they then do in fully connected networks with one output; 3 go as far as 6 to 20
            without them. ``None`` never preconditions.
        cg_tolerance: Relative residual at which conjugate gradient stops.
        line_search_max_iter: Halvings before the parameters are left as they were.
        parameters: Restricts a module to a part of its parameters.

    Reference:
        Martens, "Deep learning via Hessian-free optimization", 2010; Martens and Grosse,
        "Optimizing neural networks with Kronecker-factored approximate curvature", 2015.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float = 1.0,
        damping: float = 1e-2,
        damping_factor: float = 2.0,
        min_damping: float = 1e-8,
        cg_max_steps: int = 20,
        kronecker_cg_max_steps: int | None = None,
        cg_tolerance: float = 1e-3,
        line_search_max_iter: int = 6,
        parameters: Iterable[Tensor] | None = None,
    ) -> None:
        if not lr > 0:
            raise ConfigurationError(f"lr must be positive, got {lr}")
        limits = (cg_max_steps, kronecker_cg_max_steps, line_search_max_iter)
        if any(limit is not None and limit < 1 for limit in limits):
            raise ConfigurationError(
                "cg_max_steps, kronecker_cg_max_steps and line_search_max_iter must be at least 1, "
                f"got {cg_max_steps}, {kronecker_cg_max_steps} and {line_search_max_iter}"
            )
        super().__init__(model, {"lr": lr}, parameters)
        self.schedule = LevenbergMarquardt(damping, damping_factor, min_damping)
        self.inverse = ConjugateGradientInverse(cg_max_steps, cg_tolerance)
        self.kronecker_cg_max_steps = kronecker_cg_max_steps
        self.search = TrustRegion(math.inf, 0.5, line_search_max_iter)

    def step(self, closure: Closure) -> StepReport:  # type: ignore[override]
        """Takes one step.

        Args:
            closure: Runs the forward pass and returns (loss, output tensor), the loss computed
                from that tensor; no backward.

        Returns:
            What was done. What is not finite, and a search that fails, leave the parameters as
            they were.

        Raises:
            ConfigurationError: If the closure's prediction is not a tensor.
        """
        parameters = self.tensors()
        loss_tensor, output = self.evaluate(closure)
        if not isinstance(output, Tensor):
            raise ConfigurationError(f"NewtonCG needs a tensor prediction: {CLOSURE_ADVICE}")
        with self.graph_needed():
            matrix = GaussNewton(parameters, output, loss_tensor)
        gradient = (
            matrix.gradient()
            if matrix.jacobian.recognised and _depends_through(output, loss_tensor)
            else self.gradient(loss_tensor, parameters)
        )
        start = self.start_from(loss_tensor, output, gradient)
        loss = start.loss
        if start.obstacle:
            return self.skip(loss, start.obstacle, gradient_norm=start.gradient_norm)

        damping = self.schedule.damping
        solution = self._inverse(matrix, damping).solve(matrix, damping, gradient)
        rates = self.rates()
        direction = solution.x * -1.0 * rates
        quadratic = (
            rates**2 * solution.quadratic
            if isinstance(rates, float)
            else float(direction @ (matrix @ direction))
        )
        predicted = float(gradient @ direction) + 0.5 * quadratic
        trials: list[Trial] = []

        def evaluate() -> Trial:
            trials.append(Trial(float(closure()[0].detach()), 0.0))
            return trials[-1]

        fraction, trial = self.search.search(parameters, direction, loss, evaluate)
        self.schedule.update(trials[0].loss - loss, predicted)
        self.extra["rejected"] += trial is None
        return StepReport(
            loss,
            loss if trial is None else trial.loss,
            accepted=trial is not None,
            reason="line search failed" if trial is None else solution.reason,
            fraction=fraction,
            step_length=1.0,
            gradient_norm=start.gradient_norm,
            cg_iterations=solution.iterations,
            cg_residual=solution.residual,
            damping=damping,
        )

    def _inverse(self, matrix: GaussNewton, damping: float) -> ConjugateGradientInverse:
        """Conjugate gradient, preconditioned where that was asked for and can be done."""
        if self.kronecker_cg_max_steps is None or not KroneckerPreconditioner.applies(matrix):
            return self.inverse
        return replace(
            self.inverse,
            max_iterations=self.kronecker_cg_max_steps,
            preconditioner=KroneckerPreconditioner(matrix, damping),
        )

    def state_dict(self) -> dict[str, Any]:
        """torch's state, the counters, and the current damping."""
        self.extra["damping"] = self.schedule.damping
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        damping = self.extra.get("damping", self.schedule.damping)
        self.schedule.damping = max(damping, self.schedule.minimum)


def _depends_through(output: Tensor, loss: Tensor) -> bool:
    """Whether the loss reaches parameters by way of the output alone: no weight penalty, say."""
    todo = [(loss.grad_fn, 0)]
    seen = set()
    while todo:
        node, index = todo.pop()
        if node is None or node in seen or (node, index) == (output.grad_fn, output.output_nr):
            continue
        if node is output.grad_fn or node.name() == ACCUMULATE:
            return False
        seen.add(node)
        todo.extend(node.next_functions)
    return True
