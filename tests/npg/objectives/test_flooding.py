import math

import pytest
import torch
from torch import nn

from npg.errors import ConfigurationError
from npg.objectives import flooding


@pytest.mark.parametrize(
    ("loss", "flooded", "slope"), [(0.7, 0.7, 1), (0.1, 0.3, -1), (0.2, 0.2, 0)]
)
def test_value_and_slope(loss, flooded, slope):
    """|0.1 − 0.2| + 0.2 = 0.3; the slope is the sign of L − b."""
    x = torch.tensor(loss, requires_grad=True)
    value = flooding(x, 0.2)
    value.backward()
    assert float(value.detach()) == pytest.approx(flooded)
    assert float(x.grad) == slope


def test_it_keeps_shape_and_precision():
    losses = torch.rand(5, dtype=torch.float32)
    assert flooding(losses, 0.5).dtype == torch.float32
    assert flooding(losses, 0.5).shape == (5,)


def test_descent_hovers_at_the_level():
    """f = x², b = 0.25: descent of step 0.01 stays within a step of |x| = 0.5."""
    x = nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.SGD([x], 0.01)
    seen = []
    for _ in range(400):
        optimizer.zero_grad()
        loss = x.square()
        flooding(loss, 0.25).backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert min(seen[-100:]) < 0.25 < max(seen[-100:])
    assert all(abs(value - 0.25) < 0.02 for value in seen[-100:])


@pytest.mark.parametrize("level", [math.nan, math.inf])
def test_a_level_that_is_no_number(level):
    with pytest.raises(ConfigurationError, match="level"):
        flooding(torch.tensor(1.0), level)
