"""Minimising a function of one tensor, in the manner of SciPy."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.optim.base import StepReport
from npg.optim.iterated import IteratedOptimizer
from npg.optim.lbfgs import LBFGS
from npg.optim.newton import Newton
from npg.optim.newton_cg import NewtonCG
from npg.optim.objective import Evaluation, Objective
from npg.optim.quasi_newton import BFGS, DFP
from npg.optim.sr1 import SR1

METHODS: dict[str, Callable[..., IteratedOptimizer | NewtonCG]] = {
    "bfgs": BFGS,
    "dfp": DFP,
    "l-bfgs": LBFGS,
    "newton": Newton,
    "newton-cg": NewtonCG,
    "sr1": SR1,
}
# For many digits of a function without noise.
DEFAULTS: dict[str, dict[str, Any]] = {
    "newton-cg": {
        "matrix": "hessian",
        "damping": 0.0,
        "cg_tolerance": None,
        "cg_progress_tolerance": None,
        "warm_start": None,
    },
}


@dataclass(frozen=True)
class MinimizeResult:
    """What :func:`minimize` found, under the names that SciPy gives it.

    Attributes:
        x: Where it ended, of the start's shape.
        fun: The function's value there.
        jac: Its gradient there, of the same shape.
        success: Whether the gradient is within the tolerance.
        message: Why it ended.
        nit: Iterations that moved x.
        nfev: Evaluations of the function, with its gradient or without.
        nhev: Products with the Hessian, or its columns where it was formed.
        report: Of the last iteration; None before the first.
    """

    x: Tensor
    fun: float
    jac: Tensor
    success: bool
    message: str
    nit: int
    nfev: int
    nhev: int
    report: StepReport | None


def minimize(
    fun: Callable[[Tensor], Tensor],
    x0: Any,  # noqa: ANN401
    *,
    method: str = "bfgs",
    tol: float = 1e-5,
    maxiter: int | None = None,
    callback: Callable[..., object] | None = None,
    options: Mapping[str, Any] | None = None,
) -> MinimizeResult:
    """Minimises a differentiable function of one tensor.

        result = minimize(lambda x: (x - 1).square().sum(), torch.zeros(3))

    Args:
        fun: Takes a tensor of x0's shape and returns a scalar tensor. It is differentiated by
            autograd.
        x0: Start: a tensor of any shape, or what ``torch.as_tensor`` makes one of. It is not
            changed. Float64 is worth while: float32 ends at seven digits of the value.
        method: ``"bfgs"``, ``"dfp"``, ``"sr1"``, ``"l-bfgs"``, ``"newton"`` or ``"newton-cg"``.
        tol: Bound on the gradient's largest entry. Low values take a few iterations more, once the
            method converges superlinearly.
        maxiter: Bound on the iterations. Default: 200 per entry of x0, as in SciPy.
        callback: Called after every iteration, with x; or with the result so far, if its argument
            is named ``intermediate_result``. It ends the iterations by raising StopIteration or
            returning True.
        options: Further arguments of the optimizer's class.

    Returns:
        Where it ended. A function that is not finite at a trial shortens that step; one that is not
        finite at x0 ends it there.

    Raises:
        ConfigurationError: If the method is unknown, or the function cannot be differentiated.
    """
    names = {_plain(name): name for name in METHODS}
    if _plain(method) not in names:
        raise ConfigurationError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    name = names[_plain(method)]
    if not tol >= 0:
        raise ConfigurationError(f"tol must not be negative, got {tol}")
    if maxiter is not None and maxiter < 0:
        raise ConfigurationError(f"maxiter must not be negative, got {maxiter}")
    start = torch.as_tensor(x0).detach()
    if start.is_complex():
        raise ConfigurationError("x0 is complex: minimise over torch.view_as_real(x0)")
    if not start.is_floating_point():
        start = start.to(torch.get_default_dtype())
    x = nn.Parameter(start.clone())
    if not x.numel():
        raise ConfigurationError("x0 has no entries")
    optimizer = _made(name, x, options or {})
    tell = _teller(callback)
    objective = Objective(optimizer, lambda: fun(x))
    try:
        first = objective.gradient()
    except ConfigurationError as error:
        raise ConfigurationError(
            "fun must return a scalar tensor that torch made of x, for autograd to differentiate: "
            "no backward(), detach(), item() or NumPy inside"
        ) from error
    run = _Run(x, objective, first)
    while not run.within(tol):
        if run.iterations == (200 * x.numel() if maxiter is None else maxiter):
            return run.result(False, "the iterations are used up")
        report, point = optimizer.iterate(objective, run.point)
        run.take(report, point)
        if not report.accepted:
            return run.result(run.within(tol), report.reason)
        if tell(run.result(False, "")):
            return run.result(run.within(tol), "the callback ended it")
    return run.result(True, "the gradient is within the tolerance")


def _made(name: str, x: nn.Parameter, options: Mapping[str, Any]) -> IteratedOptimizer | NewtonCG:
    """The method's optimizer of one tensor."""
    kind = METHODS[name]
    known = set(inspect.signature(kind).parameters) - {"model", "parameters", "iterations"}
    unknown = set(options) - known
    if unknown:
        raise ConfigurationError(
            f"options: {', '.join(sorted(unknown))} unknown to {name!r}, which has "
            f"{', '.join(sorted(known))}; tol= and maxiter= are arguments of minimize"
        )
    optimizer = kind([x], **{**DEFAULTS.get(name, {}), **options})
    if optimizer.needs_prediction:
        raise ConfigurationError(
            f'options: {name!r} takes matrix="hessian" here: fun predicts nothing'
        )
    return optimizer


def _plain(name: str) -> str:
    """A method's name as everybody may write it."""
    return name.lower().replace("-", "").replace("_", "")


class _Run:
    """A minimisation under way."""

    def __init__(self, x: nn.Parameter, objective: Objective, point: Evaluation) -> None:
        self.x = x
        self.objective = objective
        self.point = point
        self.report: StepReport | None = None
        self.iterations = self.products = 0

    def within(self, tolerance: float) -> bool:
        """Whether the gradient is."""
        return math.isfinite(self.point.value) and bool(
            self.point.gradient.abs().max() <= tolerance
        )

    def take(self, report: StepReport, point: Evaluation) -> None:
        """Notes an iteration."""
        self.report, self.point = report, point
        self.iterations += report.accepted
        self.products += report.cg_iterations

    def result(self, success: bool, message: str) -> MinimizeResult:
        """What there is so far, in tensors of its own."""
        return MinimizeResult(
            self.x.detach().clone(),
            self.point.value,
            self.point.gradient.clone().view_as(self.x),
            success,
            message,
            self.iterations,
            self.objective.evaluations,
            self.products,
            self.report,
        )


def _teller(callback: Callable[..., object] | None) -> Callable[[MinimizeResult], bool]:
    """Calls the callback as SciPy would; the answer is whether to stop."""
    if callback is None:
        return lambda result: False
    wanted = inspect.signature(callback).parameters
    whole = set(wanted) == {"intermediate_result"}

    def tell(result: MinimizeResult) -> bool:
        try:
            answer = callback(intermediate_result=result) if whole else callback(result.x)
        except StopIteration:
            return True
        return answer is True

    return tell
