"""What tests of Newton and GaussNewton share: losses of networks, and of points."""

import pytest
import torch
from torch import nn

from npg.optim import GaussNewton, Newton
from tests.npg.optim.helpers import objective

BOTH = pytest.mark.parametrize("kind", [Newton, GaussNewton])


def classification(model, n=40):
    x, y = torch.randn(n, 3), torch.randint(3, (n,))
    return x, y, objective(model, x, y)


def regression(model, n=30):
    x = torch.randn(n, 3)
    y = torch.randn(n, model(x).shape[1])

    def closure():
        output = model(x)
        return (output - y).square().sum(), output

    return x, y, closure


def of_point(start, residuals):
    """A point, and the closure of the sum of its squared residuals."""
    point = nn.Parameter(torch.tensor(start))

    def closure():
        r = residuals(point)
        return r.square().sum(), r

    return point, closure


def rosenbrock(p):
    return torch.stack([10 * (p[1] - p[0] ** 2), 1 - p[0]])
