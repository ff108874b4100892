"""The test problems against the paper's minima and the values of its authors' own program."""

import numpy as np
import pytest
import torch
from benchmarks import more_garbow_hillstrom as mgh
from benchmarks.more_garbow_hillstrom import PROBLEMS
from scipy.optimize import least_squares

BY_NAME = {problem.name: problem for problem in PROBLEMS}
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)


def points(n, *values):
    """A vector of length n, the values over and over."""
    return torch.tensor(values, dtype=torch.float64).repeat(n // len(values))


# Moré, Garbow and Hillstrom, section 3; where one has no closed form its published digits.
MINIMISERS = [
    ("Rosenbrock", (1, 1), 0),
    ("Helical valley", (1, 0, 0), 0),
    ("Biggs EXP6", (1, 10, 1, 5, 4, 3), 0),
    ("Box three-dimensional", (1, 10, 1), 0),
    ("Box three-dimensional", (10, 1, -1), 0),
    ("Box three-dimensional", (0.7, 0.7, 0), 0),
    ("Powell badly scaled", (1.098e-5, 9.106), 1e-6),
    ("Variably dimensioned", (1,) * 10, 0),
    ("Brown badly scaled", (1e6, 2e-6), 0),
    ("Gulf research", (50, 25, 1.5), 0),
    ("Trigonometric", (0,) * 10, 0),
    ("Extended Rosenbrock", (1,) * 10, 0),
    ("Extended Powell singular", (0,) * 12, 0),
    ("Beale", (3, 0.5), 0),
    ("Wood", (1,) * 4, 0),
]


@pytest.mark.parametrize(("name", "minimiser", "rounding"), MINIMISERS)
def test_minimum_at_the_published_minimiser(name, minimiser, rounding):
    value = BY_NAME[name].value(torch.tensor(minimiser, dtype=torch.float64))
    assert value == pytest.approx(0, abs=rounding or 1e-24)


# As the paper prints them, some cut off and some rounded.
@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("Biggs EXP6", 5.65565e-3),
        ("Gaussian", 1.12793e-8),
        ("Watson, n = 6", 2.28767e-3),
        ("Watson, n = 9", 1.39976e-6),
        ("Penalty I, n = 4", 2.24997e-5),
        ("Penalty I, n = 10", 7.08765e-5),
        ("Penalty II, n = 4", 9.37629e-6),
        ("Penalty II, n = 10", 2.93660e-4),
        ("Brown and Dennis", 85822.2),
        ("Chebyquad, n = 8", 3.51687e-3),
    ],
)
def test_more_digits_of_the_printed_minima(name, printed):
    last_digit = 10.0 ** (np.floor(np.log10(printed)) - 5)
    assert BY_NAME[name].minima[-1] == pytest.approx(printed, abs=last_digit, rel=0)


@every_problem
def test_least_squares_ends_at_a_listed_minimum(problem):
    def residuals(x):
        return problem.residuals(torch.from_numpy(x)).numpy()

    def jacobian(x):
        return torch.func.jacrev(problem.residuals)(torch.from_numpy(x)).numpy()

    exact = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "max_nfev": 2000}
    found = least_squares(residuals, problem.x0.numpy(), jacobian, **exact)
    # The listed digits, or zero where f is a fourth power of the way left (Powell's singular one).
    assert any(
        2 * found.cost == pytest.approx(minimum, rel=1e-10, abs=1e-20) for minimum in problem.minima
    )


def test_biggs_other_minimum():
    """Where x₁ = x₅ and x₃ = x₆, as at the start, and a method that keeps to that stays above 0."""
    problem = BY_NAME["Biggs EXP6"]

    def residuals(z):
        return problem.residuals(torch.from_numpy(z[[0, 1, 2, 3, 0, 2]])).numpy()

    found = least_squares(residuals, [1, 2, 1, 1], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert 2 * found.cost == pytest.approx(problem.minima[1], rel=1e-10)
    x = torch.from_numpy(found.x[[0, 1, 2, 3, 0, 2]])
    assert torch.func.grad(problem.value)(x).abs().max() < 1e-7


# f and |∇f| at the standard starts, in the dimensions of Toms566.jl, which calls the authors' own
# Fortran (Algorithm 566) and prints them in its README.
@pytest.mark.parametrize(
    ("residuals", "start", "value", "gradient"),
    [
        (mgh.helical_valley, (-1, 0, 0), "2.50e+03", "1.88e+03"),
        (mgh.biggs_exp6, (1, 2, 1, 1, 1, 1), "7.79e-01", "2.55e+00"),
        (mgh.gaussian, (0.4, 1, 0), "3.89e-06", "7.45e-03"),
        (mgh.powell_badly_scaled, (0, 1), "1.14e+00", "2.00e+04"),
        (mgh.box_three_dimensional, (0, 10, 20), "1.03e+03", "1.49e+02"),
        (
            mgh.variably_dimensioned,
            1 - mgh.count(1, 40) / 40,
            "9.39e+10",
            "1.01e+11",
        ),
        (mgh.watson, points(9, 0.0), "3.00e+01", "1.78e+02"),
        (mgh.penalty_1, mgh.count(1, 60), "5.45e+09", "8.02e+07"),
        (mgh.penalty_2, points(65, 0.5), "2.87e+05", "3.28e+05"),
        (mgh.brown_badly_scaled, (1, 1), "1.00e+12", "2.00e+06"),
        (mgh.brown_dennis, (25, 5, -5, -1), "7.93e+06", "2.14e+06"),
        (mgh.gulf, (5, 2.5, 0.15), "1.21e+01", "3.97e+01"),
        (mgh.trigonometric, points(40, 1 / 40), "2.01e-03", "5.30e-02"),
        (mgh.rosenbrock, points(40, -1.2, 1), "4.84e+02", "1.04e+03"),
        (mgh.powell_singular, points(60, 3, -1, 0, 1), "3.23e+03", "1.78e+03"),
        (mgh.beale, (1, 1), "1.42e+01", "2.78e+01"),
        (mgh.wood, (-3, -1, -3, -1), "1.92e+04", "1.64e+04"),
        (mgh.chebyquad, mgh.count(1, 50) / 51, "1.39e-02", "2.65e+00"),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_algorithm_566_at_the_start(residuals, start, value, gradient):
    start = torch.as_tensor(start, dtype=torch.float64)

    def function(x):
        return residuals(x).square().sum()

    assert f"{function(start):.2e}" == value
    assert f"{torch.func.grad(function)(start).norm():.2e}" == gradient


@every_problem
def test_derivatives_agree_with_finite_differences(problem):
    """First ones and second ones, at the start and off it."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(problem.n, generator=generator, dtype=torch.float64)
    for x in (problem.x0, problem.x0 + 0.1 * noise):
        x.requires_grad_()
        assert torch.autograd.gradcheck(problem.residuals, x)
        assert torch.autograd.gradgradcheck(problem.residuals, x)


def test_the_set_is_complete():
    """The eighteen of the paper, and Rosenbrock's plain function."""
    assert len(BY_NAME) == len(PROBLEMS)
    assert len({problem.name.split(",")[0] for problem in PROBLEMS}) == 19
