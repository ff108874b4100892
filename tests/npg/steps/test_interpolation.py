import math

import numpy as np
import pytest
from scipy.optimize._dcsrch import dcstep

from npg.steps.interpolation import (
    Point,
    cubic_minimum,
    next_step,
    parabola_minimum,
    secant_minimum,
)


def points(polynomial, *steps):
    slope = polynomial.deriv()
    return [Point(float(a), float(polynomial(a)), float(slope(a))) for a in steps]


def cubic_with(minimum, maximum, size=1.0):
    """Its derivative vanishes at both, and rises at the minimum."""
    sign = math.copysign(size, minimum - maximum)
    return np.polynomial.Polynomial.fromroots([minimum, maximum]).integ() * sign


PLACES = [(0.0, 1.0), (1.0, 0.0), (0.2, 0.3), (-5.0, 4.0), (0.0, 1e-6), (0.0, 1e6)]


class TestMinima:
    @pytest.mark.parametrize(("a", "b"), PLACES)
    @pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
    def test_of_a_cubic(self, a, b, size):
        """Wherever it is: between the points, beyond either, and not its maximum."""
        for place in (-0.7, 0.4, 0.6, 2.5):
            for distance in (-3.0, 0.5, 8.0):
                minimum = a + place * (b - a)
                cubic = cubic_with(minimum, minimum + distance * (b - a), size)
                found = cubic_minimum(*points(cubic, a, b))
                assert found == pytest.approx(minimum, abs=1e-7 * abs(b - a))

    @pytest.mark.parametrize(("a", "b"), PLACES)
    def test_of_a_parabola(self, a, b):
        for minimum in (a - 2 * (b - a), 0.3 * a + 0.7 * b, b + 5 * (b - a)):
            parabola = 3 * np.polynomial.Polynomial.fromroots([minimum, minimum])
            for method in (parabola_minimum, secant_minimum, cubic_minimum):
                found = method(*points(parabola, a, b))
                assert found == pytest.approx(minimum, abs=1e-7 * abs(b - a))

    def test_of_a_parabola_is_that_through_the_second_value(self):
        """φ(0) = 0, φ′(0) = −2, φ(1) = 2: −2α + 4α² is least at ¼, whatever the slope at 1."""
        assert parabola_minimum(Point(0, 0, -2), Point(1, 2, 99)) == pytest.approx(0.25)

    def test_of_a_secant_is_that_through_the_slopes(self):
        """Slopes −2 and 6: zero at ¼, whatever the values."""
        assert secant_minimum(Point(0, 9, -2), Point(1, -9, 6)) == pytest.approx(0.25)

    def test_there_is_none(self):
        line = points(np.polynomial.Polynomial([1.0, -2.0]), 0, 1)
        rising = points(np.polynomial.Polynomial([0.0, 1.0, 0.0, 1.0]), -1, 1)
        assert math.isnan(cubic_minimum(*rising))
        for method in (cubic_minimum, parabola_minimum, secant_minimum):
            assert math.isnan(method(*line))

    def test_overflow_is_no_error(self):
        huge = Point(0, 1e308, -1e308), Point(1e-300, -1e308, 1e308)
        assert not math.isfinite(cubic_minimum(*huge))
        for values in ((math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0)):
            assert math.isnan(cubic_minimum(Point(0, 0, -1), Point(1, *values)))


def test_tilted():
    """φ − 3α at α = 2."""
    assert Point(2, 10, 1).tilted(3) == Point(2, 4, -2)


class TestNextStep:
    """The four cases of Moré and Thuente, section 4, against SciPy's translation of their code."""

    @pytest.mark.parametrize(
        ("low", "high", "trial"),
        [
            (Point(0, 0, -1), None, Point(1, 0.5, 2)),  # higher
            (Point(0, 0, -1), Point(3, 1, 1), Point(1, 0.01, -0.1)),
            (Point(0, 0, -1), None, Point(1, -0.3, 0.4)),  # lower, and rising
            (Point(2, 0, 1), Point(0, 1, -1), Point(1, -0.3, -2)),
            (Point(0, 0, -1), None, Point(1, -0.6, -0.2)),  # lower, and flatter
            (Point(0, 0, -1), None, Point(1, -0.9, -0.99)),
            (Point(0, 0, -1), Point(3, 1, 1), Point(1, -0.6, -0.2)),
            (Point(0, 0, -1), Point(1.5, 1, 1), Point(1, -0.6, -0.6)),
            (Point(3, 0, 1), Point(0, 1, -1), Point(2, -0.6, 0.9)),
            (Point(0, 0, -1), None, Point(1, -2, -3)),  # lower, and steeper
            (Point(0, 0, -1), Point(3, 1, 1), Point(1, -2, -3)),
            (Point(3, 0, 1), Point(0, 1, -1), Point(2, -2, 1.5)),
        ],
    )
    def test_is_scipys(self, low, high, trial):
        other = high or low
        ends = sorted([low.step, other.step])
        reach = (2.1, 5.0) if high is None else (ends[0], ends[1])
        stx, fx, dx, sty, fy, dy, step, bracketed = dcstep(
            *(low.step, low.value, low.slope, other.step, other.value, other.slope),
            *(trial.step, trial.value, trial.slope, high is not None, *reach),
        )
        new_low, new_high, found = next_step(low, high, trial, 0.0, reach)
        assert found == pytest.approx(step, rel=1e-13)
        assert new_low == Point(stx, fx, dx)
        assert (new_high is not None) == bracketed
        if bracketed:
            assert new_high == Point(sty, fy, dy)

    def test_ends_keep_their_values_under_a_tilt(self):
        low, trial = Point(0, 0, -1), Point(1, -0.05, 0.5)
        new_low, new_high, _ = next_step(low, None, trial, -0.1, (0.0, 4.0))
        assert (new_low, new_high) == (low, trial)  # −0.05 + 0.1 > 0: higher
        assert next_step(low, None, trial, 0.0, (0.0, 4.0))[:2] == (trial, low)

    def test_slopes_decide_where_values_are_rounding(self):
        """Slopes −1 and −½: the value that is higher by 10⁻¹⁶ is lower by 3/4 · 10⁻¹⁶."""
        low, trial = Point(0, 1.0, -1e-16), Point(1, 1.0 + 1e-15, -5e-17)
        assert next_step(low, None, trial, 0.0, (1.1, 5.0), 1e-14) == (trial, None, 2.0)
        new_low, new_high, step = next_step(low, None, trial, 0.0, (1.1, 5.0))
        assert (new_low, new_high) == (low, trial)
        assert 0 < step < 1

    def test_not_where_the_slopes_promise_more(self):
        low, trial = Point(0, 1.0, -1.0), Point(1, 1.0 + 1e-15, -0.5)
        assert next_step(low, None, trial, 0.0, (1.1, 5.0), 1e-14)[:2] == (low, trial)
