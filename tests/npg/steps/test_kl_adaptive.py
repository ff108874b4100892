import math

import pytest

from npg.errors import ConfigurationError
from npg.steps import KLAdaptive

# KL for a target of 0.01, the next step size after 0.3
TABLE = [
    (0.0, 0.45),
    (-1e-9, 0.45),  # an estimate may be below zero
    (0.0049, 0.45),
    (0.005, 0.3),  # δ/2 itself is between
    (0.01, 0.3),
    (0.02, 0.3),  # and so is 2δ
    (0.021, 0.2),
    (5.0, 0.2),
    (math.nan, 0.2),
    (math.inf, 0.2),
    (-math.inf, 0.2),
]


@pytest.mark.parametrize(("kl", "expected"), TABLE)
def test_table(kl, expected):
    assert KLAdaptive(0.01).update(0.3, kl) == pytest.approx(expected, rel=1e-14)


def test_bounds():
    rule = KLAdaptive(0.01, factor=10.0, minimum=0.05, maximum=2.0)
    size, sizes = 0.3, []
    for kl in (0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.01):
        size = rule.update(size, kl)
        sizes.append(size)
    assert sizes == pytest.approx([2.0, 2.0, 2.0, 0.2, 0.05, 0.05, 0.05])
    assert rule.update(100.0, 0.01) == 2.0


def test_settles_where_the_divergence_is_near_the_target():
    """A quadratic KL c η², c = 7: η ends where δ/2 ≤ 7η² ≤ 2δ, from either side."""
    rule = KLAdaptive(0.01)
    for size in (1e-6, 1.0):
        for _ in range(60):
            size = rule.update(size, 7 * size**2)
        assert 0.005 <= 7 * size**2 <= 0.02


@pytest.mark.parametrize(
    "settings",
    [
        {"target_kl": 0.0},
        {"target_kl": math.nan},
        {"factor": 1.0},
        {"factor": math.nan},
        {"minimum": 0.0},
        {"minimum": 2.0},
        {"maximum": math.nan},
    ],
)
def test_settings_are_checked(settings):
    with pytest.raises(ConfigurationError, match="factor > 1"):
        KLAdaptive(**{"target_kl": 0.01, **settings})
