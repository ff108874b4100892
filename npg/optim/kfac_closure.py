"""K-FAC's step where the loss can be evaluated again: the exact step, and adaptive damping."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Distribution

from npg.curvature import Fisher, math_attention
from npg.likelihoods import as_distribution
from npg.linalg import assign_, flatten, split
from npg.optim.base import Closure, Prediction, StepReport
from npg.steps import SameConditions, minimise_quadratic

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
        self.checked = self.adaptive and optimizer.schedule.due(int(optimizer.extra["steps"]) + 1)
        self.conditions = SameConditions(optimizer.model) if self.checked else None

    def evaluate(self, closure: Closure) -> tuple[Tensor, Prediction] | Tensor:
        """Runs the closure; its gradients begin at zero."""
        self.optimizer.zero_grad()
        with math_attention():
            return closure()

    def step(self, closure: Closure, loss_tensor: Tensor, output: Prediction) -> StepReport:
        """Takes the step.

        Args:
            closure: Runs the forward pass, for another evaluation.
            loss_tensor: The loss before the step, with its graph.
            output: The prediction it was computed from.

        Returns:
            What was done. A loss or gradient that is not finite, and a step after which the loss
            is not finite or is larger, leave the parameters as they were, bit for bit.
        """
        optimizer = self.optimizer
        with torch.enable_grad(), optimizer.graph_needed():
            prediction = (
                as_distribution(output, optimizer.likelihood)
                if self.exact or self.checked
                else None
            )
            if isinstance(output, Distribution) and optimizer.fisher.kind != "empirical":
                optimizer.observe(output)
            loss_tensor.backward(retain_graph=prediction is not None)
        gradients = optimizer.gradients()
        parameters = list(gradients)
        gradient = flatten(gradients.values())
        decay = self._decay(parameters)
        before = [p.clone() for p in parameters]
        loss, norm = float(loss_tensor.detach()), float(torch.linalg.vector_norm(gradient))
        obstacle = ""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            obstacle = "loss or gradient is not finite"
        elif norm == 0:
            obstacle = "zero gradient"
        if obstacle:
            optimizer.fisher.clear()
            optimizer.count()
            return optimizer.skip(loss, obstacle, gradient_norm=norm)
        optimizer.update_curvature(self.damping + max(decay, default=0.0))
        if optimizer.extra["steps"] < optimizer.burn_in:
            optimizer.count()
            return StepReport(loss, loss, accepted=False, reason="burn-in", kl=0.0)

        natural = optimizer.preconditioner.apply(gradients)
        model = (
            None if prediction is None else QuadraticModel(parameters, prediction, gradient, decay)
        )
        predicted, length = math.nan, 1.0
        if model is not None and self.exact:
            predicted, length = self._exact_step(model, natural)
        else:
            optimizer.move(gradients, natural)
            if model is not None:
                predicted = model.change_since(before)
        after, ratio = math.nan, math.nan
        accepted = True
        if model is not None and self.conditions is not None:
            after = self._again(closure)
            change = after - loss + model.decay_change(before)
            accepted = math.isfinite(change) and change <= 0
            ratio = optimizer.schedule.update(change, predicted)
            if not accepted:
                assign_(parameters, before)
                for p in parameters:
                    optimizer.state[p].pop("velocity", None)
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

    def _decay(self, parameters: list[Tensor]) -> list[float]:
        """The coefficient of the L2 term, per parameter."""
        if self.optimizer.decoupled_weight_decay:
            return [0.0] * len(parameters)
        return self._settings("weight_decay", parameters)

    def _settings(self, name: str, parameters: list[Tensor]) -> list[float]:
        """A setting of the groups, per parameter."""
        groups = self.optimizer.param_groups
        by_parameter = {p: float(group[name]) for group in groups for p in group["params"]}
        return [by_parameter[p] for p in parameters]

    def _exact_step(
        self, model: "QuadraticModel", natural: dict[Tensor, Tensor]
    ) -> tuple[float, float]:
        """Moves by the minimum of the quadratic model on the span of F̂⁻¹g and the last step."""
        optimizer = self.optimizer
        parameters = model.parameters
        directions = [flatten(natural[p] for p in parameters)]
        last = [optimizer.state[p].get("velocity") for p in parameters]
        if all(v is not None for v in last):
            directions.append(flatten(v for v in last if v is not None))
        span = torch.stack(directions)
        curvature, gram, slope = model.restricted(span)
        found = minimise_quadratic(curvature, gram, slope, damping=self.damping)
        if optimizer.decoupled_weight_decay:
            optimizer.shrink(torch.tensor(True, device=parameters[0].device))
        step = found.coefficients.to(span) @ span
        rates = self._settings("lr", parameters)
        for p, rate, piece in zip(parameters, rates, split(step, parameters), strict=True):
            optimizer.state[p]["velocity"] = piece.mul_(rate)
            p.add_(piece)
        length = -float(found.coefficients[0])
        return float(found.predicted_change), length

    def _again(self, closure: Closure) -> float:
        """The loss at the parameters' present values, under the same random numbers."""
        assert self.conditions is not None
        with self.conditions, self.optimizer.fisher.capture.suspended():
            loss, _ = closure()
        return float(loss)


class QuadraticModel:
    """gᵀd + ½ dᵀ(F + η I)d around the present parameters, F the exact Fisher matrix of the batch.

    Args:
        parameters: What d is over.
        prediction: The model's prediction, with its graph.
        gradient: g [P], with the L2 term's.
        decay: η per parameter.
    """

    def __init__(
        self,
        parameters: list[Tensor],
        prediction: Distribution,
        gradient: Tensor,
        decay: list[float],
    ) -> None:
        self.parameters = parameters
        self.fisher = Fisher(parameters, prediction)
        self.gradient = gradient
        self.decay = decay

    def restricted(self, span: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Restricts the model to a span.

        Args:
            span: Directions in rows, V [k, P].

        Returns:
            V C Vᵀ [k, k] with the L2 term's curvature in C, V Vᵀ [k, k], and V g [k].
        """
        tangents = [self.fisher.jacobian.jvp(v) for v in span]
        products = [self.fisher.output_product(t) for t in tangents]
        curvature = _flat_rows(tangents) @ _flat_rows(products).T
        gram = span @ span.T
        if any(self.decay):
            uniform = len(set(self.decay)) == 1
            scaled = gram * self.decay[0] if uniform else (span * self._decays()) @ span.T
            curvature = curvature + scaled
        return curvature, gram, span @ self.gradient

    def change_since(self, before: list[Tensor]) -> float:
        """The model's change of the objective since the parameters were there."""
        step = flatten(p - old for p, old in zip(self.parameters, before, strict=True))
        curvature, _, slope = self.restricted(step.unsqueeze(0))
        return float(slope[0] + curvature[0, 0] / 2)

    def _decays(self) -> Tensor:
        return flatten(
            torch.full_like(p, eta) for p, eta in zip(self.parameters, self.decay, strict=True)
        )

    def decay_change(self, before: list[Tensor]) -> float:
        """By how much the L2 term has grown since the parameters were there."""
        if not any(self.decay):
            return 0.0
        change = [
            eta / 2 * (p.double().square().sum() - old.double().square().sum())
            for p, old, eta in zip(self.parameters, before, self.decay, strict=True)
        ]
        return float(torch.stack(change).sum())


def _flat_rows(groups: list[list[Tensor]] | list[tuple[Tensor, ...]]) -> Tensor:
    """One row per group of tensors."""
    return torch.stack([flatten(group) for group in groups])
