"""What the optimizers that re-evaluate their objective have in common."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from npg import ranks
from npg.curvature import CurvatureMatrix, MeanOverRanks, math_attention
from npg.errors import ConfigurationError
from npg.linalg import flatten
from npg.optim.closures import run_closure
from npg.optim.shards import refuse_shards

Prediction = Distribution | Tensor
Closure = Callable[[], tuple[Tensor, Prediction]] | Callable[[], Tensor]
Protocol = Literal["gradient", "function", "hessian"]

CLOSURE_ADVICE = (
    "the closure must run the forward pass only and return (loss, prediction), both with their "
    "graph: no backward(), no zero_grad(), and `return loss, logits` instead of `return loss`"
)
LOSS_ADVICE = (
    "the closure must run the forward pass only, with gradients enabled, and return the loss, "
    "a scalar tensor with its graph, or (loss, prediction): no backward(), no zero_grad(), no "
    "detach() or item()"
)


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        loss: Loss before the step; ``float(report)`` is the same.
        loss_after: Loss after it; the same as before if nothing moved.
        kl: Mean KL from the reference prediction, nats; 0 if nothing moved, nan where unknown.
        accepted: Whether the parameters moved.
        reason: Why not, or how the solver stopped.
        fraction: Accepted fraction of ``step_length``; 0 if nothing moved.
        step_length: Multiplier of the preconditioned gradient, beside ``lr``: in the first trial,
            where a search goes back from it; in the accepted one, where it interpolates.
        gradient_norm: ‖g‖.
        cg_iterations: Products with the curvature matrix.
        cg_residual: Relative residual of the linear system.
        damping: λ that was used.
        reduction_ratio: Actual over predicted change of the loss, where both were measured.
        evaluations: Of the objective, with its gradient or without; 0 where nobody counts.
    """

    loss: float
    loss_after: float
    accepted: bool
    reason: str
    kl: float = math.nan
    fraction: float = 0.0
    step_length: float = 0.0
    gradient_norm: float = math.nan
    cg_iterations: int = 0
    cg_residual: float = math.nan
    damping: float = math.nan
    reduction_ratio: float = math.nan
    evaluations: int = 0

    def __float__(self) -> float:
        """The loss before the step."""
        return self.loss


@dataclass(frozen=True)
class Start:
    """The objective where a step begins.

    Attributes:
        loss: Its value.
        loss_tensor: The same with its graph.
        prediction: The closure's prediction, with its graph.
        gradient: Flat gradient [P].
        gradient_norm: ‖g‖.
        obstacle: Why no step can be taken from here; empty if one can.
    """

    loss: float
    loss_tensor: Tensor
    prediction: Prediction
    gradient: Tensor
    gradient_norm: float
    obstacle: str


def trainable(
    model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
) -> Iterable[Tensor] | Iterable[dict[str, Any]]:
    """Returns what torch's optimizers take: parameters, or groups of them.

    Args:
        model: Module, or what is returned as it is.
        parameters: Restricts a module to these of its parameters, which may be in groups.

    Returns:
        A module's parameters that require a gradient, or ``model`` where it is no module.

    Raises:
        ConfigurationError: If nothing is left, or ``parameters`` are not the module's.
    """
    if not isinstance(model, nn.Module):
        if parameters is not None:
            raise ConfigurationError("parameters= restricts a module; model= is no module here")
        return model
    known = list(model.parameters())
    given: list[Any] = known if parameters is None else list(parameters)
    grouped = bool(given) and isinstance(given[0], dict)
    groups = [dict(group) for group in given] if grouped else [{"params": given}]
    found = 0
    for group in groups:
        inside = list(group["params"])
        if not {id(p) for p in inside} <= {id(p) for p in known}:
            found = 0
            break
        group["params"] = [p for p in inside if p.requires_grad]
        found += len(group["params"])
    if not found:
        raise ConfigurationError(
            "parameters= must be among the model's, and at least one must require a "
            f"gradient; found {found}"
        )
    tensors: list[Tensor] = groups[0]["params"]
    return groups if grouped else tensors


class FunctionOptimizer(torch.optim.Optimizer):
    """An optimizer whose ``step(closure)`` evaluates the objective as often as it needs.

    Its own counters and adapted settings live in :attr:`extra`, a dictionary of numbers that
    ``state_dict`` keeps under a key of its own: torch casts everything in ``state[p]`` to the
    parameter's dtype, a counter included.

    Args:
        model: Module, or iterable of parameters or of parameter groups.
        defaults: Settings of the parameter groups, ``lr`` among them.
        parameters: Restricts a module to these of its parameters.

    Attributes:
        distributed: Whether a closure sees this rank's part of the batch only, and what is measured
            of it is averaged over the ranks of ``torch.distributed``, which must all take their
            steps together. So it is from the start for a model in DistributedDataParallel.
    """

    protocol: ClassVar[Protocol] = "function"
    takes_complex: ClassVar[bool] = False
    # Whether a closure has to return the prediction, too.
    needs_prediction: ClassVar[bool] = True
    # Whether its objective's evaluations keep their graph, to take a matrix from.
    keeps_graph: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        defaults: dict[str, Any],
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(trainable(model, parameters), defaults)
        refuse_shards(type(self).__name__, self.param_groups)
        self.settings = tuple(defaults)  # torch adds names of its own to these
        self.module = model if isinstance(model, nn.Module) else None
        self.distributed = isinstance(model, nn.parallel.DistributedDataParallel)
        self.extra: dict[str, float] = {"steps": 0, "skipped": 0, "rejected": 0}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters.

        Args:
            param_group: ``params`` and what differs from the defaults.

        Raises:
            ConfigurationError: If a parameter is complex, where that is not supported.
        """
        super().add_param_group(param_group)
        added = self.param_groups[-1]["params"]
        if not self.takes_complex and any(p.is_complex() for p in added):
            self.param_groups.pop()
            raise ConfigurationError(
                f"{type(self).__name__} takes no complex parameters: let the model keep their real "
                "view (torch.view_as_real) as a parameter instead"
            )

    def check_newest_group(
        self, model: nn.Module | None, check: Callable[[list[dict[str, Any]]], None]
    ) -> None:
        """Takes the group that was added last out again, where it cannot be.

        Args:
            model: Whose parameters it has to be of; None where any will do.
            check: Refuses settings of groups that cannot work.

        Raises:
            ConfigurationError: If a parameter is not the model's, or a setting cannot work.
        """
        newest = self.param_groups[-1]["params"]
        known = {id(p) for p in (newest if model is None else model.parameters())}
        try:
            if any(id(p) not in known for p in newest):
                raise ConfigurationError("a group's params must be parameters of the model")
            check(self.param_groups)
        except ConfigurationError:
            self.param_groups.pop()
            raise

    def tensors(self) -> list[Tensor]:
        """All parameters of all groups, in the order of the flat vector."""
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def rates(self) -> Tensor | float:
        """Per-parameter ``lr`` [P], or one number where all groups agree."""
        values = {float(group["lr"]) for group in self.param_groups}
        if len(values) == 1:
            return values.pop()
        return flatten(
            torch.full_like(p, float(group["lr"]))
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
        )

    def evaluate(
        self, closure: Closure | None, *, watch: bool = False
    ) -> tuple[Tensor, Prediction | None]:
        """Runs the closure with gradients, and checks what it returns.

        Args:
            closure: Runs the forward pass.
            watch: Whether to look at the gradients for traces of ``backward()``.

        Returns:
            The loss and the prediction; None where there is none and nobody needs it.

        Raises:
            ConfigurationError: If it is another kind of closure.
        """
        if not callable(closure):
            raise ConfigurationError(f"{type(self).__name__}.step(closure): {self.advice}")
        if watch:
            result, called_backward = run_closure(closure, self.tensors())
        else:
            called_backward = False
            with torch.enable_grad(), math_attention():
                result = closure()
        pair = isinstance(result, tuple) and len(result) == 2
        loss, prediction = result if pair else (result, None)
        fits = isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad
        if called_backward or not (fits and (pair or not self.needs_prediction)):
            raise ConfigurationError(f"{type(self).__name__}: {self.advice}")
        return (ranks.mean_loss(loss) if self.distributed else loss), prediction

    @property
    def advice(self) -> str:
        """What kind of closure it takes."""
        return CLOSURE_ADVICE if self.needs_prediction else LOSS_ADVICE

    def gradient(
        self, loss: Tensor, parameters: Sequence[Tensor], *, retain_graph: bool = True
    ) -> Tensor:
        """Returns the flat gradient [P].

        Args:
            loss: With its graph.
            parameters: In whose order.
            retain_graph: Whether the graph is needed again.

        Returns:
            Zeros for parameters that take no part.

        Raises:
            ConfigurationError: If none takes part, or the graph is gone.
        """
        with self.graph_needed():
            gradients = torch.autograd.grad(
                loss, parameters, retain_graph=retain_graph, allow_unused=True
            )
        if all(gradient is None for gradient in gradients):
            raise ConfigurationError(
                f"{type(self).__name__}: the loss does not depend on any of the parameters: are "
                "these the parameters of the model that the closure runs?"
            )
        if any(gradient is not None and gradient.layout != torch.strided for gradient in gradients):
            raise ConfigurationError(
                f"{type(self).__name__} needs dense gradients: use nn.Embedding(..., sparse=False)"
            )
        flat = flatten(
            torch.zeros_like(p) if gradient is None else gradient
            for p, gradient in zip(parameters, gradients, strict=True)
        )
        return self.over_ranks(flat)

    def over_ranks(self, vector: Tensor) -> Tensor:
        """What was measured of this rank's part of the batch, of the whole one: its mean.

        Args:
            vector: Flat [P]; in place.

        Returns:
            The same tensor, as it was where the optimizer is not distributed.
        """
        if self.distributed:
            ranks.average_([vector])
        return vector

    def matrix_over_ranks(self, matrix: CurvatureMatrix) -> CurvatureMatrix:
        """The same of a matrix."""
        return MeanOverRanks(matrix) if self.distributed else matrix

    @contextmanager
    def graph_needed(self) -> Iterator[None]:
        """Says what the closure should do where its graph is gone."""
        try:
            yield
        except RuntimeError as error:
            if "second time" in str(error):
                raise ConfigurationError(f"{type(self).__name__}: {self.advice}") from error
            raise

    def start(self, closure: Closure) -> Start:
        """Evaluates the objective with its gradient, counts a step, and looks for obstacles."""
        loss, prediction = self.evaluate(closure)
        assert prediction is not None
        return self.start_from(loss, prediction, self.gradient(loss, self.tensors()))

    def start_from(self, loss_tensor: Tensor, prediction: Prediction, gradient: Tensor) -> Start:
        """The same from an objective that was evaluated."""
        self.extra["steps"] += 1
        loss, norm = float(loss_tensor.detach()), float(torch.linalg.vector_norm(gradient))
        return Start(loss, loss_tensor, prediction, gradient, norm, obstacle_to(loss, norm))

    def standstill(self) -> str:
        """Why no step moves anything at present, as where schedules begin or end; empty if not."""
        return "" if any(float(group["lr"]) for group in self.param_groups) else "the rate is zero"

    def skip(self, loss: float, reason: str, **known: float) -> StepReport:
        """Counts a step that was not taken, and reports it."""
        self.extra["skipped"] += 1
        return StepReport(loss, loss, accepted=False, reason=reason, kl=0.0, **known)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """torch's state, and :attr:`extra` under ``"npg"``."""
        return {**super().state_dict(), "npg": dict(self.extra)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave, numbers uncast."""
        own = dict(state_dict)
        extra = own.pop("npg", {})
        super().load_state_dict(own)
        for group in self.param_groups:  # one saved before a setting existed
            for name in self.settings:
                group.setdefault(name, self.defaults[name])
        self.extra.update(extra)

    def __getstate__(self) -> dict[str, Any]:
        """All attributes, see :func:`attributes`."""
        return attributes(self)


def obstacle_to(loss: float, gradient_norm: float) -> str:
    """Says why no step can be taken from somewhere.

    Args:
        loss: There.
        gradient_norm: There.

    Returns:
        A reason; empty where there is none.
    """
    if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
        return "loss or gradient is not finite"
    return "" if gradient_norm else "zero gradient"


def attributes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a copy of an optimizer needs; torch's own state has three of its attributes only.

    Args:
        optimizer: To be copied.

    Returns:
        All its attributes but torch's hooks, which it makes anew, and a scheduler's wrapper around
        step, which would step the original.
    """
    return {
        name: value
        for name, value in vars(optimizer).items()
        if not (name == "step" or name.startswith(("_optimizer_", "_zero_grad", "_warned")))
    }
