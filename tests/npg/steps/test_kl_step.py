import math

import pytest
import torch

from npg.errors import NumericalError
from npg.steps import kl_step_length


def test_puts_the_model_on_the_boundary():
    """½ η² · 8 = 0.01 at η = 0.05."""
    assert kl_step_length(8.0, 0.01) == pytest.approx(0.05, rel=1e-15)


def test_with_damping_too():
    factor = torch.randn(6, 6)
    fisher, gradient = factor @ factor.T, torch.randn(6)
    for damping in (0.0, 0.1, 10.0):
        x = torch.linalg.solve(fisher + damping * torch.eye(6), gradient)
        step = kl_step_length(float(x @ fisher @ x), 0.03) * x
        assert float(0.5 * step @ fisher @ step) == pytest.approx(0.03, rel=1e-12)


@pytest.mark.parametrize("quadratic", [0.0, -1e-9, math.nan, math.inf])
def test_a_direction_that_changes_nothing_has_no_length(quadratic):
    with pytest.raises(NumericalError, match="positive and finite"):
        kl_step_length(quadratic, 0.01)
