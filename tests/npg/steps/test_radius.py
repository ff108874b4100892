import math

import pytest
import torch

from npg.steps.radius import next_radius, reduction_ratio, resolved_radius

# ρ, length of the step, whether the radius bounded it, and the radius after one of 8
TABLE = [
    (1.0, 8.0, True, 16.0),  # as promised: twice as far
    (1.0, 8.4, True, 16.8),
    (0.8, 8.0, True, 16.0),
    (0.75, 8.0, True, 8.0),  # ¾ itself is between
    (1.0, 2.0, False, 8.0),  # a step that ended by itself says nothing of the radius
    (3.0, 8.0, True, 16.0),
    (0.5, 8.0, True, 8.0),
    (0.25, 8.0, True, 8.0),  # and so is ¼
    (0.2, 8.0, True, 2.0),
    (0.2, 2.0, False, 0.5),  # a quarter of the step
    (0.2, 8.8, True, 2.0),  # which may be a little longer than the radius
    (0.0, 8.0, True, 2.0),
    (-5.0, 8.0, True, 2.0),
    (-math.inf, 4.0, False, 1.0),
]


@pytest.mark.parametrize(("ratio", "length", "bounded", "after"), TABLE)
def test_table(ratio, length, bounded, after):
    assert next_radius(8.0, length, ratio, bounded=bounded) == pytest.approx(after)


@pytest.mark.parametrize(
    ("actual", "predicted", "ratio"),
    [
        (-1.0, -2.0, 0.5),
        (1.0, -2.0, -0.5),
        (-1.0, 2.0, -math.inf),  # a model that promises a rise
        (-1.0, 0.0, -math.inf),
        (math.nan, -1.0, -math.inf),
        (math.inf, -1.0, -math.inf),
        (-math.inf, -1.0, -math.inf),
        (-1.0, math.nan, -math.inf),
        (0.0, -1.0, 0.0),
    ],
)
def test_ratio(actual, predicted, ratio):
    assert reduction_ratio(actual, predicted) == pytest.approx(ratio)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_radius_and_its_square_stay_numbers_above_zero(dtype):
    assert resolved_radius(3.5, dtype) == 3.5
    for radius in (0.0, 1e-320, 1e308, math.inf):
        resolved = resolved_radius(radius, dtype)
        assert 0 < resolved**2 < math.inf
        assert 0 < float(torch.tensor(resolved, dtype=dtype)) < math.inf
