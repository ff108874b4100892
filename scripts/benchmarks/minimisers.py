"""Runs of this library's, SciPy's and torch's minimisers, with every evaluation counted."""

import warnings
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from benchmarks.more_garbow_hillstrom import Problem
from npg import optim

GRADIENT_TOLERANCE = 1e-8  # on the gradient's largest entry, for both sides
ITERATIONS = 2000

# What lets each of SciPy's methods go on until the gradient is that small. Its trust regions may
# grow as far as they like: with the default of 1,000 the badly scaled problem takes 1,010 steps.
UNLIMITED: dict[str, dict[str, float]] = {
    "BFGS": {"gtol": GRADIENT_TOLERANCE},
    "L-BFGS-B": {"gtol": GRADIENT_TOLERANCE, "ftol": 0, "maxcor": 10, "maxfun": 20 * ITERATIONS},
    "Newton-CG": {"xtol": 1e-12},  # it has no bound on the gradient
    "trust-exact": {"gtol": GRADIENT_TOLERANCE, "max_trust_radius": 1e10},
    "trust-krylov": {"gtol": GRADIENT_TOLERANCE, "max_trust_radius": 1e10},
    "trust-constr": {"gtol": GRADIENT_TOLERANCE, "xtol": 1e-12},
}


@dataclass(frozen=True)
class Run:
    """One minimiser on one problem.

    Attributes:
        evaluations: Until within 1e-8·max(1, |f*|) of the published minimum f* that the run
            ended at; None if it ended at none.
        points: Distinct points evaluated in the whole run.
        reported: Evaluations in the whole run as the minimiser itself counts them.
        products: Products with the Hessian in the whole run, n for a matrix of them.
        end: The value at the result.
    """

    evaluations: int | None
    points: int
    reported: int
    products: int
    end: float


@dataclass
class Counted:
    """A problem's function that remembers where it was asked, and what it answered.

    A value and its gradient at one point are one evaluation, however they are asked for.

    Attributes:
        problem: Whose function.
        values: The value at each point, in order of the first evaluation.
        products: Products with the Hessian that SciPy asked for, n where it asked for a matrix.
    """

    problem: Problem
    values: dict[bytes, float] = field(default_factory=dict)
    products: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """The value at x, differentiable."""
        value = self.problem.value(x)
        with suppress(RuntimeError):  # of a tensor within torch.func, which has no value to see
            self.values.setdefault(x.detach().numpy().tobytes(), value.item())
        return value

    def with_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient, as SciPy takes them."""
        point = torch.tensor(x, requires_grad=True)
        value = self(point)
        (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient.numpy()

    def hessian(self, x: np.ndarray) -> np.ndarray:
        """The dense Hessian."""
        self.products += self.problem.n
        return torch.func.hessian(self.problem.value)(torch.tensor(x)).numpy()

    def hessian_product(self, x: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """The Hessian times a direction."""
        self.products += 1
        point = torch.tensor(x, requires_grad=True)
        (gradient,) = torch.autograd.grad(self.problem.value(point), point, create_graph=True)
        return torch.autograd.grad(gradient, point, torch.tensor(direction))[0].numpy()

    def run(self, end: Tensor, reported: int, products: int) -> Run:
        """Sums up a run that ended at a point, and its minimiser's own count of evaluations."""
        values, value = list(self.values.values()), self.problem.value(end).item()
        evaluations = first_within(values, value, self.problem.minima)
        return Run(evaluations, len(values), reported, products, value)


def ours(problem: Problem, method: str) -> Run:
    """This library's method, which counts its products with the Hessian itself."""
    counted = Counted(problem)
    found = optim.minimize(
        counted,
        problem.x0,
        method=method,
        tol=GRADIENT_TOLERANCE,
        maxiter=ITERATIONS,
    )
    return counted.run(found.x, found.nfev, found.nhev)


def scipys(problem: Problem, method: str) -> Run:
    """SciPy's method."""
    counted = Counted(problem)
    second_order = {
        "Newton-CG": {"hessp": counted.hessian_product},
        "trust-exact": {"hess": counted.hessian},
        "trust-krylov": {"hess": counted.hessian},
        "trust-constr": {"hess": scipy.optimize.SR1()},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflow at trial points, limits reached: counted anyway
        found = scipy.optimize.minimize(
            counted.with_gradient,
            problem.x0.numpy(),
            jac=True,
            method=method,
            options={"maxiter": ITERATIONS} | UNLIMITED[method],
            **second_order.get(method, {}),
        )
    return counted.run(torch.tensor(found.x), found.nfev, counted.products)


def torchs(problem: Problem, method: str) -> Run:
    """torch.optim.LBFGS, with as many pairs as the others and its own strong Wolfe search."""
    counted = Counted(problem)
    x = torch.nn.Parameter(problem.x0.clone())
    optimizer = torch.optim.LBFGS(
        [x],
        max_iter=ITERATIONS,
        max_eval=20 * ITERATIONS,
        history_size=10,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = counted(x)
        value.backward()
        return value

    optimizer.step(closure)
    end = problem.value(x.detach()).item()
    return Run(
        first_within(list(counted.values.values()), end, problem.minima),
        len(counted.values),
        optimizer.state[x]["func_evals"],
        0,
        end,
    )


def first_within(values: list[float], end: float, minima: tuple[float, ...]) -> int | None:
    """Counts evaluations until the minimum that the run ended at.

    Args:
        values: In order of evaluation.
        end: The value at the result.
        minima: Published ones; the nearest to the end is meant.

    Returns:
        The number of evaluations up to the first value within 1e-8·max(1, |f*|), None if the end
        is not.
    """
    minimum = min(minima, key=lambda minimum: abs(end - minimum))
    tolerance = 1e-8 * max(1.0, abs(minimum))
    if not abs(end - minimum) <= tolerance:
        return None
    return next(i for i, value in enumerate(values, 1) if value - minimum <= tolerance)
