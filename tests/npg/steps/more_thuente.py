"""The six test functions of Moré and Thuente, "Line search algorithms with guaranteed sufficient
decrease", 1994, with the conditions of their tables I to VI."""

import math
from dataclasses import dataclass

import torch

FIRST_TRIALS = (1e-3, 1e-1, 1e1, 1e3)


def rational(a, beta=2.0):
    return -a / (a**2 + beta)


def polynomial(a, beta=0.004):
    return (a + beta) ** 5 - 2 * (a + beta) ** 4


def oscillating(a, beta=0.01, waves=39):
    if a <= 1 - beta:
        valley = 1 - a
    elif a >= 1 + beta:
        valley = a - 1
    else:
        valley = (a - 1) ** 2 / (2 * beta) + beta / 2
    return valley + 2 * (1 - beta) / (waves * math.pi) * torch.sin(waves * math.pi / 2 * a)


def yanai(first, second):
    def gamma(beta):
        return math.sqrt(1 + beta**2) - beta

    def function(a):
        left = gamma(first) * torch.sqrt((1 - a) ** 2 + second**2)
        return left + gamma(second) * torch.sqrt(a**2 + first**2)

    return function


@dataclass
class Line:
    """φ with the conditions μ (sufficient decrease) and η (slope) of its table."""

    table: str
    function: object
    decrease: float
    slope: float

    def __call__(self, step):
        a = torch.tensor(step, dtype=torch.float64, requires_grad=True)
        value = self.function(a)
        return value.item(), torch.autograd.grad(value, a)[0].item()


# μ = η in most tables; just below it, since a search asks for μ < η.
LINES = (
    Line("I", rational, 0.001, 0.1),
    Line("II", polynomial, 0.0999, 0.1),
    Line("III", oscillating, 0.0999, 0.1),
    Line("IV", yanai(0.001, 0.001), 0.000999, 0.001),
    Line("V", yanai(0.01, 0.001), 0.000999, 0.001),
    Line("VI", yanai(0.001, 0.01), 0.000999, 0.001),
)
