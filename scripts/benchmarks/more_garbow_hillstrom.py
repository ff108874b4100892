"""Eighteen standard problems of unconstrained minimisation, as sums of squares of residuals.

The set of the unconstrained section of Moré, Garbow and Hillstrom, "Testing unconstrained
optimization software", ACM Transactions on Mathematical Software 7 (1981), and Rosenbrock's
function in its plain form. Some come in two dimensions, where the paper has a minimum for both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PENALTY = math.sqrt(1e-5)
# Of the fifteen observations of a standard normal density the last seven repeat the first.
DENSITY = (0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989)


@dataclass(frozen=True)
class Problem:
    """A function Σᵢ rᵢ(x)² with a standard start.

    Attributes:
        name: As in the paper, with the dimension where it is a choice.
        start: The standard starting point.
        residuals: Maps float64 ``x`` of shape (n,) to the residuals r(x), differentiably.
        minima: Values of the local minima that have been published; the paper's six digits are
            carried further where a comparison to 1e-8 asks for it.
    """

    name: str
    start: tuple[float, ...]
    residuals: Callable[[Tensor], Tensor]
    minima: tuple[float, ...] = (0.0,)

    @property
    def n(self) -> int:
        """The dimension."""
        return len(self.start)

    @property
    def x0(self) -> Tensor:
        """The standard starting point, shape (n,), float64."""
        return torch.tensor(self.start, dtype=torch.float64)

    def value(self, x: Tensor) -> Tensor:
        """The sum of squares, a scalar without the factor ½."""
        return self.residuals(x).square().sum()


def count(first: int, last: int) -> Tensor:
    """The numbers first, …, last."""
    return torch.arange(first, last + 1, dtype=torch.float64)


def rosenbrock(x: Tensor) -> Tensor:
    odd, even = x[::2], x[1::2]
    return torch.cat([10 * (even - odd**2), 1 - odd])


def helical_valley(x: Tensor) -> Tensor:
    # The angle in turns, −¼ … ¾: the paper's arctan(x₂/x₁) with its jump on the negative x₂ axis,
    # not on the negative x₁ axis as atan2(x₂, x₁) has it, for that is where the start lies.
    turns = 0.25 + torch.atan2(-x[0], x[1]) / (2 * math.pi)
    return torch.stack([10 * (x[2] - 10 * turns), 10 * (torch.hypot(x[0], x[1]) - 1), x[2]])


def biggs_exp6(x: Tensor) -> Tensor:
    t = count(1, 13) / 10
    observed = torch.exp(-t) - 5 * torch.exp(-10 * t) + 3 * torch.exp(-4 * t)
    model = x[2] * torch.exp(-t * x[0]) - x[3] * torch.exp(-t * x[1]) + x[5] * torch.exp(-t * x[4])
    return model - observed


def gaussian(x: Tensor) -> Tensor:
    t = (8 - count(1, 15)) / 2
    observed = torch.tensor(DENSITY + DENSITY[-2::-1], dtype=torch.float64)
    return x[0] * torch.exp(-x[1] * (t - x[2]) ** 2 / 2) - observed


def powell_badly_scaled(x: Tensor) -> Tensor:
    return torch.stack([1e4 * x[0] * x[1] - 1, torch.exp(-x).sum() - 1.0001])


def box_three_dimensional(x: Tensor) -> Tensor:
    t = count(1, 10) / 10
    return torch.exp(-t * x[0]) - torch.exp(-t * x[1]) - x[2] * (torch.exp(-t) - torch.exp(-10 * t))


def variably_dimensioned(x: Tensor) -> Tensor:
    off = x - 1
    weighted = count(1, len(x)) @ off
    return torch.cat([off, torch.stack([weighted, weighted**2])])


def watson(x: Tensor) -> Tensor:
    """A polynomial p with p′ − p² = 1 and p(0) = 0, at 29 points; x holds its coefficients."""
    n = len(x)
    powers = (count(1, 29) / 29)[:, None] ** count(0, n - 1)
    slope = powers[:, :-1] @ (count(1, n - 1) * x[1:])
    return torch.cat([slope - (powers @ x) ** 2 - 1, torch.stack([x[0], x[1] - x[0] ** 2 - 1])])


def penalty_1(x: Tensor) -> Tensor:
    return torch.cat([PENALTY * (x - 1), (x.square().sum() - 0.25)[None]])


def penalty_2(x: Tensor) -> Tensor:
    n = len(x)
    grown, steps = torch.exp(x / 10), torch.exp(count(1, n) / 10)
    return torch.cat(
        [
            x[:1] - 0.2,
            PENALTY * (grown[1:] + grown[:-1] - steps[1:] - steps[:-1]),
            PENALTY * (grown[1:] - math.exp(-0.1)),
            (count(1, n).flip(0) @ x.square() - 1)[None],
        ]
    )


def brown_badly_scaled(x: Tensor) -> Tensor:
    return torch.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def brown_dennis(x: Tensor) -> Tensor:
    t = count(1, 20) / 5
    first, second = x[0] + t * x[1] - torch.exp(t), x[2] + x[3] * torch.sin(t) - torch.cos(t)
    return first**2 + second**2


def gulf(x: Tensor) -> Tensor:
    # The paper prints |yᵢ m i x₂|, where "mi" stands for a minus sign; the authors' program has it.
    t = count(1, 99) / 100
    y = 25 + (-50 * torch.log(t)) ** (2 / 3)
    return torch.exp(-((y - x[1]).abs() ** x[2]) / x[0]) - t


def trigonometric(x: Tensor) -> Tensor:
    cosines = torch.cos(x)
    return len(x) - cosines.sum() + count(1, len(x)) * (1 - cosines) - torch.sin(x)


def powell_singular(x: Tensor) -> Tensor:
    a, b, c, d = x.view(-1, 4).T
    return torch.cat(
        [a + 10 * b, math.sqrt(5) * (c - d), (b - 2 * c) ** 2, math.sqrt(10) * (a - d) ** 2]
    )


def beale(x: Tensor) -> Tensor:
    return torch.tensor([1.5, 2.25, 2.625], dtype=x.dtype) - x[0] * (1 - x[1] ** count(1, 3))


def wood(x: Tensor) -> Tensor:
    a, b, c, d = x
    return torch.stack(
        [
            10 * (b - a**2),
            1 - a,
            math.sqrt(90) * (d - c**2),
            1 - c,
            math.sqrt(10) * (b + d - 2),
            (b - d) / math.sqrt(10),
        ]
    )


def chebyquad(x: Tensor) -> Tensor:
    """Means over x of the Chebyshev polynomials on [0, 1], less their integrals."""
    shifted = 2 * x - 1
    polynomials = [torch.ones_like(x), shifted]
    for _ in range(len(x) - 1):
        polynomials.append(2 * shifted * polynomials[-1] - polynomials[-2])
    degree = count(1, len(x))
    integrals = torch.where(degree % 2 == 0, -1 / (degree**2 - 1), 0.0)
    return torch.stack(polynomials[1:]).mean(1) - integrals


def _equal(n: int) -> tuple[float, ...]:
    return tuple(j / (n + 1) for j in range(1, n + 1))


PROBLEMS = (
    Problem("Rosenbrock", (-1.2, 1), rosenbrock),
    Problem("Helical valley", (-1, 0, 0), helical_valley),
    Problem("Biggs EXP6", (1, 2, 1, 1, 1, 1), biggs_exp6, (0.0, 5.6556499255e-3)),
    Problem("Gaussian", (0.4, 1, 0), gaussian, (1.12793276962e-8,)),
    Problem("Powell badly scaled", (0, 1), powell_badly_scaled),
    Problem("Box three-dimensional", (0, 10, 20), box_three_dimensional),
    Problem("Variably dimensioned", tuple(1 - j / 10 for j in range(1, 11)), variably_dimensioned),
    Problem("Watson, n = 6", (0,) * 6, watson, (2.28767005355e-3,)),
    Problem("Watson, n = 9", (0,) * 9, watson, (1.39976013809e-6,)),
    Problem("Penalty I, n = 4", (1, 2, 3, 4), penalty_1, (2.2499775009e-5,)),
    Problem("Penalty I, n = 10", tuple(range(1, 11)), penalty_1, (7.08765146709e-5,)),
    Problem("Penalty II, n = 4", (0.5,) * 4, penalty_2, (9.37629300736e-6,)),
    Problem("Penalty II, n = 10", (0.5,) * 10, penalty_2, (2.93660537457e-4,)),
    Problem("Brown badly scaled", (1, 1), brown_badly_scaled),
    Problem("Brown and Dennis", (25, 5, -5, -1), brown_dennis, (85822.201626356,)),
    Problem("Gulf research", (5, 2.5, 0.15), gulf),
    Problem("Trigonometric", (0.1,) * 10, trigonometric, (0.0, 2.79505612188e-5)),
    Problem("Extended Rosenbrock", (-1.2, 1) * 5, rosenbrock),
    Problem("Extended Powell singular", (3, -1, 0, 1) * 3, powell_singular),
    Problem("Beale", (1, 1), beale),
    Problem("Wood", (-3, -1, -3, -1), wood),
    Problem("Chebyquad, n = 8", _equal(8), chebyquad, (3.51687372568e-3,)),
    Problem("Chebyquad, n = 9", _equal(9), chebyquad),
)
