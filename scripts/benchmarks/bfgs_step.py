"""What a BFGS iteration does besides evaluating: by torch's profiler, and against SciPy's."""

import warnings
from collections import Counter
from statistics import median

import scipy.optimize
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import Row, median_ratio, seconds
from npg.optim import BFGS

SIZE = 2000
ITERATIONS = 10
# What an iteration may do with the matrix: H g of the new gradient, and H + Σ c u uᵀ.
EXPECTED = Counter({"aten::addmv_": 1, "aten::addmm_": 1})


def problem(size: int) -> tuple[Tensor, Tensor]:
    """Curvatures and a start of a function whose evaluation costs next to nothing."""
    generator = torch.Generator().manual_seed(0)
    curvature = torch.logspace(0, 2, size, dtype=torch.float64)
    return curvature, torch.randn(size, generator=generator, dtype=torch.float64)


def ours(iterations: int) -> BFGS:
    """An optimizer that has taken so many iterations, all of one function."""
    curvature, start = problem(SIZE)
    x = torch.nn.Parameter(start.clone())
    optimizer = BFGS([x], iterations=iterations, deterministic=False)
    optimizer.step(lambda: value(x, curvature))
    return optimizer


def value(x: Tensor, curvature: Tensor) -> Tensor:
    """½ Σ hᵢ xᵢ² + ¼ Σ xᵢ⁴."""
    return (0.5 * curvature * x * x + 0.25 * x**4).sum()


def scipys(iterations: int) -> None:
    """SciPy's BFGS on the same function for as many."""
    curvature, start = (tensor.numpy() for tensor in problem(SIZE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that the iterations are used up
        scipy.optimize.minimize(
            lambda x: ((0.5 * curvature * x * x + 0.25 * x**4).sum(), curvature * x + x**3),
            start,
            jac=True,
            method="BFGS",
            options={"maxiter": iterations, "gtol": 0},
        )


def calls() -> Counter[str]:
    """What one iteration does with matrices of this size, by name."""
    optimizer = ours(3)
    curvature, _ = problem(SIZE)
    (x,) = optimizer.tensors()
    optimizer.iterations = 1
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        optimizer.step(lambda: value(x, curvature))
    inside = [
        event
        for event in recorded.events()
        if [SIZE, SIZE] in event.input_shapes and event.name != "aten::resolve_conj"  # no work
    ]
    return Counter(e.name for e in inside if not any(child in inside for child in e.cpu_children))


def rows(rounds: int) -> list[Row]:
    """The profile, and the time of an iteration.

    Args:
        rounds: Of the comparison, interleaved.
    """
    done = calls()
    said = ", ".join(f"{count} × {name}" for name, count in sorted(done.items()))
    # The start and the first iterations cost both sides something else: taken off.
    times: dict[str, list[float]] = {"ours": [], "SciPy": []}
    for _ in range(rounds):
        for name, run in (("ours", ours), ("SciPy", scipys)):
            short, long = (seconds(lambda r=run, n=n: r(n)) for n in (2, 2 + ITERATIONS))
            times[name].append((long - short) / ITERATIONS)
    return [
        Row(
            f"BFGS, n = {SIZE:,}: operations with the matrix that are not one product with a "
            "vector and one rank-2 update",
            said,
            "profiled",
            sum((done - EXPECTED).values()) + sum((EXPECTED - done).values()),
            "<= 0",
        ),
        Row(
            f"BFGS, n = {SIZE:,}: an iteration",
            f"{median(times['ours']) * 1e3:.1f} ms",
            f"SciPy {median(times['SciPy']) * 1e3:.0f} ms",
            median_ratio(times["ours"], times["SciPy"]),
        ),
    ]
