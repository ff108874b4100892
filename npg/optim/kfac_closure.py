"""K-FAC's step where the loss can be evaluated again: the exact step, and adaptive damping."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Distribution

from npg import ranks
from npg.curvature import SameConditions, math_attention
from npg.errors import ConfigurationError
from npg.likelihoods import as_distribution
from npg.linalg import assign_, flatten, split
from npg.optim.base import CLOSURE_ADVICE, Closure, Prediction, StepReport
from npg.optim.closures import run_closure
from npg.optim.factor_damping import choose_factor_damping, exact_directions
from npg.optim.kfac_curvature import update_curvature
from npg.optim.kfac_groups import by_parameter, decayed_gradients
from npg.optim.kfac_plain import motion, shrinking
from npg.optim.objective import rounding_of
from npg.optim.quadratic import QuadraticModel
from npg.steps import minimise_quadratic

if TYPE_CHECKING:
    from npg.optim.kfac import KFAC


class ClosureStep:
    """One step of a K-FAC optimizer with a closure.

    Args:
        optimizer: Whose step it is.
    """

    def __init__(self, optimizer: "KFAC") -> None:
        self.optimizer = optimizer
        settings = optimizer.param_groups[0]
        # Without a likelihood a tensor says nothing of F, and only what was asked for needs it.
        known = optimizer.likelihood is not None or optimizer.fisher.kind != "empirical"
        self.exact = settings["momentum"] == "quadratic" or (known and settings["momentum"] is None)
        self.adaptive = optimizer.adaptive or (known and settings["damping"] is None)
        self.damping = optimizer.schedule.damping if self.adaptive else optimizer.fixed_damping()
        # λ of the model is one thing, the damping of the factors another where it can be judged.
        self.judged = self.exact and self.adaptive
        self.checked = self.adaptive and optimizer.schedule.due(int(optimizer.extra["steps"]) + 1)
        self.conditions = SameConditions(optimizer.model) if self.checked else None

    def evaluate(self, closure: Closure) -> tuple[Tensor, Prediction] | Tensor:
        """Runs the closure, and finds out of which kind it is.

        Args:
            closure: Of either kind.

        Returns:
            The loss and the prediction of one that ran the forward pass only; whatever torch's
            kind returned.

        Raises:
            ConfigurationError: If it is neither.
        """
        result, called_backward = run_closure(closure, self.optimizer.tensors())
        if isinstance(result, tuple):
            loss = result[0] if len(result) == 2 else None
            fits = isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad
            if called_backward or not fits:
                raise ConfigurationError(f"{type(self.optimizer).__name__}: {CLOSURE_ADVICE}")
        elif not called_backward:
            raise ConfigurationError(
                f"{type(self.optimizer).__name__}: the closure returned a loss without calling "
                f"backward(). Either it does as torch's closures do, or {CLOSURE_ADVICE}"
            )
        return result  # type: ignore[no-any-return]

    def step(self, closure: Closure, loss_tensor: Tensor, output: Prediction) -> StepReport:
        """Takes the step; of its passes after the gradients' own nothing is heard.

        Args:
            closure: Runs the forward pass, for another evaluation.
            loss_tensor: The loss before the step, with its graph.
            output: The prediction it was computed from.

        Returns:
            What was done. A loss or gradient that is not finite, and a step after which the loss
            is not finite or is larger, leave the parameters as they were, bit for bit.
        """
        prediction = self._differentiate(loss_tensor, output)
        with self.optimizer.fisher.capture.suspended():
            return self._step_from(closure, loss_tensor, prediction)

    def _step_from(
        self, closure: Closure, loss_tensor: Tensor, prediction: Distribution | None
    ) -> StepReport:
        optimizer = self.optimizer
        gradients = decayed_gradients(
            optimizer.param_groups, decoupled=optimizer.decoupled_weight_decay
        )
        parameters = list(gradients)
        gradient = flatten(gradients.values())
        decay = self._decay(parameters)
        loss, norm = self._mean(loss_tensor), float(torch.linalg.vector_norm(gradient))
        obstacle = ""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            obstacle = "loss or gradient is not finite"
        elif norm == 0:
            obstacle = "zero gradient"
        if obstacle:
            optimizer.fisher.discard()
            optimizer.count()
            return optimizer.skip(loss, obstacle, gradient_norm=norm)
        factor_damping = optimizer.extra["factor_damping"] if self.judged else self.damping
        inverted = update_curvature(optimizer, factor_damping)
        if optimizer.extra["steps"] < optimizer.burn_in:
            optimizer.count()
            return StepReport(loss, loss, accepted=False, reason="burn-in", kl=0.0)
        if not optimizer.preconditioner.ready:
            optimizer.count()
            return optimizer.skip(loss, "no statistics were finite yet", gradient_norm=norm)

        model = None
        if prediction is not None:
            model = QuadraticModel(
                parameters,
                prediction,
                gradient,
                decay,
                samples=self._samples(),
                distributed=optimizer.distributed,
            )
            if inverted and self.judged:
                choose_factor_damping(optimizer, model, gradients, self.damping)
        # What is not looked at again is not taken back.
        before = [p.clone() for p in parameters] if self.conditions is not None else []
        after, ratio, accepted = math.nan, math.nan, True
        try:
            moved = self._move(model, gradients)
            if moved is None:  # F̂⁻¹g may overflow where g does not
                optimizer.count()
                return optimizer.skip(loss, "step is not finite", gradient_norm=norm)
            predicted, length = moved
            if model is not None and self.conditions is not None:
                accepted = False
                after = self._again(closure)
                change = after - loss + model.decay_change(before)
                accepted = math.isfinite(change) and change <= 0
                rounding = rounding_of(loss, gradient.dtype)
                ratio = optimizer.schedule.update(change, predicted, rounding)
        finally:
            if not accepted:
                assign_(parameters, before)
                for p in parameters:
                    optimizer.state[p].pop("velocity", None)
        if not accepted:
            optimizer.extra["rejected"] += 1
            after = loss
        optimizer.count()
        return StepReport(
            loss,
            after,
            accepted=accepted,
            reason="exact step" if self.exact else "fixed step",
            fraction=float(accepted),
            step_length=length,
            gradient_norm=norm,
            damping=self.damping,
            reduction_ratio=ratio,
        )

    def _differentiate(self, loss: Tensor, output: Prediction) -> Distribution | None:
        """Leaves the loss's gradients; returns the prediction where its curvature is needed."""
        optimizer = self.optimizer
        optimizer.zero_grad()
        prediction = None
        with torch.enable_grad(), math_attention(), optimizer.graph_needed():
            if self.exact or self.checked:
                prediction = as_distribution(output, optimizer.likelihood)
            if isinstance(output, Distribution) and optimizer.fisher.kind != "empirical":
                optimizer.observe(output)
            # Others of the model's parameters keep their gradients; DDP waits for all of them.
            inputs = None if optimizer.distributed else optimizer.tensors()
            loss.backward(retain_graph=prediction is not None, inputs=inputs)
        return prediction

    def _samples(self) -> int | None:
        """How many of this rank's samples the quadratic model is of."""
        samples = self.optimizer.quadratic_samples
        if samples is None or not self.optimizer.distributed:
            return samples
        return -(-samples // ranks.count())

    def _decay(self, parameters: list[Tensor]) -> list[float]:
        """The coefficient of the L2 term, per parameter."""
        if self.optimizer.decoupled_weight_decay:
            return [0.0] * len(parameters)
        return by_parameter(self.optimizer.param_groups, "weight_decay", parameters)

    def _move(
        self,
        model: QuadraticModel | None,
        gradients: dict[Tensor, Tensor],
    ) -> tuple[float, float] | None:
        """Moves the parameters; returns the predicted change and the step length, if it did."""
        if model is not None and self.exact:
            return self._exact_step(model, gradients)
        ready = motion(self.optimizer, gradients)
        predicted = math.nan
        if model is not None:
            predicted = model.change(flatten(ready.displacement()))
        ready.take()
        return predicted, 1.0

    def _exact_step(
        self, model: QuadraticModel, gradients: dict[Tensor, Tensor]
    ) -> tuple[float, float] | None:
        """Moves by the minimum of the quadratic model on the span of F̂⁻¹g and the last step."""
        optimizer = self.optimizer
        parameters = model.parameters
        span = exact_directions(optimizer, parameters, gradients)
        curvature, gram, slope = model.restricted(span)
        found = minimise_quadratic(curvature, gram, slope, damping=self.damping)
        step = found.coefficients.to(span) @ span
        if not bool(torch.isfinite(step.sum())):
            return None
        rates = by_parameter(optimizer.param_groups, "lr", parameters)
        shrink = shrinking(optimizer, parameters)
        pieces = [
            piece if rate == 1 else piece * rate
            for rate, piece in zip(rates, split(step, parameters), strict=True)
        ]
        moves = [
            piece + p * factor if factor else piece
            for p, piece, factor in zip(parameters, pieces, shrink, strict=True)
        ]
        predicted = float(found.predicted_change)
        if self.checked and (any(shrink) or set(rates) != {1.0}):
            predicted = model.change(flatten(moves))  # of what is done, not of the minimum
        for p, piece, moved in zip(parameters, pieces, moves, strict=True):
            optimizer.state[p]["velocity"] = piece
            p.add_(moved)
        return predicted, -float(found.coefficients[0])

    def _again(self, closure: Closure) -> float:
        """The loss at the parameters' present values, under the same random numbers."""
        assert self.conditions is not None
        with self.conditions, math_attention():
            loss, _ = closure()
        return self._mean(loss)

    def _mean(self, loss: Tensor) -> float:
        """The loss, over all ranks."""
        return float(ranks.mean_loss(loss) if self.optimizer.distributed else loss)
