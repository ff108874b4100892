import math

import pytest

from npg.errors import ConfigurationError
from npg.steps import LevenbergMarquardt

# actual change, predicted change, ratio, λ after λ = 1 with factor 2
TABLE = [
    (-1.0, -1.0, 1.0, 0.5),  # as promised
    (-0.8, -1.0, 0.8, 0.5),  # above ¾
    (-0.75, -1.0, 0.75, 1.0),  # ¾ itself is between
    (-0.5, -1.0, 0.5, 1.0),
    (-0.25, -1.0, 0.25, 1.0),  # and so is ¼
    (-0.2, -1.0, 0.2, 2.0),  # below ¼
    (0.0, -1.0, 0.0, 2.0),
    (1.0, -1.0, -1.0, 2.0),  # the loss rose
    (-3.0, -1.0, 3.0, 0.5),  # better than promised
    (1.0, 1.0, 1.0, 2.0),  # it rose as promised: a step of another length than the model's
    (-1.0, 0.5, -2.0, 2.0),
    (math.nan, -1.0, -math.inf, 2.0),
    (math.inf, -1.0, -math.inf, 2.0),
    (-math.inf, -1.0, -math.inf, 2.0),
    (-1.0, math.nan, -math.inf, 2.0),
    (-1.0, 0.0, -math.inf, 2.0),
    (0.0, 0.0, -math.inf, 2.0),
]


@pytest.mark.parametrize(("actual", "predicted", "ratio", "damping"), TABLE)
def test_table(actual, predicted, ratio, damping):
    schedule = LevenbergMarquardt(1.0, factor=2.0)
    assert schedule.update(actual, predicted) == pytest.approx(ratio)
    assert schedule.damping == damping


def test_the_default_factor_is_martens():
    schedule = LevenbergMarquardt()
    schedule.update(0.0, -1.0)
    assert schedule.damping == 1.5
    schedule.update(-1.0, -1.0)
    assert schedule.damping == 1.0


def test_bounds():
    schedule = LevenbergMarquardt(1.0, 10.0, minimum=0.05, maximum=50.0)
    values = []
    for actual in (-1, -1, -1, 0, 0, 0, 0):
        schedule.update(actual, -1.0)
        values.append(schedule.damping)
    assert values == pytest.approx([0.1, 0.05, 0.05, 0.5, 5.0, 50.0, 50.0])


@pytest.mark.parametrize(
    "settings",
    [
        {"factor": 1.0},
        {"factor": 0.5},
        {"damping": 0.0},
        {"damping": -1.0},
        {"minimum": 0.0},
        {"damping": 1.0, "maximum": 0.5},
        {"damping": 1.0, "minimum": 2.0},
        {"factor": math.nan},
        {"damping": math.nan},
    ],
)
def test_settings_are_checked(settings):
    with pytest.raises(ConfigurationError, match="factor > 1"):
        LevenbergMarquardt(**settings)


def test_every_fifth_step_as_martens_and_grosse():
    """ω₁ = (19/20)^5: λ changes by that at steps 5, 10, 15."""
    schedule = LevenbergMarquardt(1.0, factor=20 / 19, interval=5)
    assert [step for step in range(1, 16) if schedule.due(step)] == [5, 10, 15]
    schedule.update(-1.0, -1.0)
    assert schedule.damping == pytest.approx((19 / 20) ** 5)
    schedule.update(0.0, -1.0)
    assert schedule.damping == pytest.approx(1.0)
    schedule.update(-0.5, -1.0)
    assert schedule.damping == pytest.approx(1.0)


def test_every_step_without_an_interval():
    assert all(LevenbergMarquardt().due(step) for step in range(1, 4))


@pytest.mark.parametrize("interval", [0, -1])
def test_the_interval_is_checked(interval):
    with pytest.raises(ConfigurationError, match="interval must be at least 1"):
        LevenbergMarquardt(interval=interval)


@pytest.mark.parametrize(
    ("actual", "predicted", "damping"),
    [
        (1e-9, -1e-9, 1.0),  # both are rounding
        (0.0, -1e-8, 1.0),
        (1e-9, -1e-3, 2.0),  # the promise is not: ρ = −10⁻⁶ < ¼
        (-1e-3, -1e-9, 0.5),  # nor is what came of it: ρ = 10⁶ > ¾
    ],
)
def test_rounding_says_nothing(actual, predicted, damping):
    schedule = LevenbergMarquardt(1.0, factor=2.0)
    ratio = schedule.update(actual, predicted, rounding=1e-8)
    assert schedule.damping == damping
    assert (ratio == 1.0) == (damping == 1.0)
