import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize._dcsrch import DCSRCH

from npg.errors import ConfigurationError
from npg.steps import Armijo, StrongWolfe
from npg.steps.interpolation import Point
from tests.npg.steps.more_thuente import FIRST_TRIALS, LINES


def search(settings, function, first=1.0, rounding=0.0, start=None):
    """Runs a search on a function that gives value and slope; returns it and the trials."""
    trials = []

    def evaluate(step):
        trials.append(step)
        return Point(step, *function(step))

    start = start or Point(0.0, *function(0.0))
    found = settings.search(evaluate, start, first, rounding)
    assert found.evaluations == len(trials)
    assert found.point is None or found.point.step in trials
    return found, trials


def meets(settings, function, point):
    """The strong Wolfe conditions, written out."""
    (start, slope), (value, here) = function(0.0), function(point.step)
    return value <= start + settings.sufficient_decrease * point.step * slope and abs(
        here
    ) <= settings.curvature * abs(slope)


def parabola(a):
    """Least at 3."""
    return (a - 3.0) ** 2, 2 * (a - 3.0)


class TestStrongWolfe:
    @pytest.mark.parametrize("first", FIRST_TRIALS)
    @pytest.mark.parametrize("line", LINES, ids=lambda line: line.table)
    def test_tables_of_more_and_thuente(self, line, first):
        """The trials are those of MINPACK, in SciPy's translation."""
        settings = StrongWolfe(line.decrease, line.slope, max_evaluations=50)
        found, trials = search(settings, line, first)
        assert found.reason == "strong Wolfe conditions"
        assert meets(settings, line, found.point)
        theirs = []
        minpack = DCSRCH(
            lambda a: theirs.append(float(a)) or line(float(a))[0],
            lambda a: line(float(a))[1],
            *(line.decrease, line.slope, 1e-15, 0.0, 1e10),
        )
        value, slope = line(0.0)
        minpack(first, phi0=value, derphi0=slope, maxiter=50)
        assert trials == pytest.approx(theirs, rel=1e-8)

    @pytest.mark.parametrize("curvature", [0.9, 0.1, 1e-3, 1e-9])
    @pytest.mark.parametrize("first", [1e-4, 1.0, 1e4])
    def test_random_polynomials(self, curvature, first):
        """Sextics that descend at 0 and are bounded below."""
        generator = np.random.default_rng(0)
        settings = StrongWolfe(min(1e-4, 0.5 * curvature), curvature, 60)
        for _ in range(20):
            sextic = np.polynomial.Polynomial([*generator.normal(size=6), 0.3])
            sextic.coef[1] = -abs(sextic.coef[1])

            def function(a, sextic=sextic):
                return float(sextic(a)), float(sextic.deriv()(a))

            found, _ = search(settings, function, first)
            assert found.reason == "strong Wolfe conditions"
            assert meets(settings, function, found.point)

    def test_takes_the_first_trial_where_that_will_do(self):
        found, trials = search(StrongWolfe(), parabola, 2.0)
        assert trials == [2.0]
        assert found.point == Point(2.0, 1.0, -2.0)

    def test_a_parabola_takes_two_trials(self):
        """To go from φ′ = −6 to within 10⁻⁹ of 0 the second one must be the minimum."""
        found, trials = search(StrongWolfe(curvature=1e-9, sufficient_decrease=1e-10), parabola)
        assert trials == pytest.approx([1.0, 3.0])
        assert found.point.value < 1e-15

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("what", ["value", "slope"])
    def test_what_is_not_finite_shortens(self, bad, what):
        """−log(1 − α) − 3α, defined below 1 alone; least at ⅔."""

        def function(a):
            if a >= 1:
                return (bad, 0.0) if what == "value" else (-1e9, bad)
            return -math.log(1 - a) - 3 * a, 1 / (1 - a) - 3

        for first in (1.0, 7.0, 1e6):
            found, trials = search(StrongWolfe(curvature=0.1), function, first)
            assert found.reason == "strong Wolfe conditions"
            assert found.point.step == pytest.approx(2 / 3, abs=0.1)
            assert all(b < a for a, b in pairwise(trials) if a >= 1)

    def test_a_wall_behind_the_start_of_the_way(self):
        """Trials grow fourfold until they meet the wall, and none goes where one was not finite."""

        def function(a):
            return (-a, -1.0) if a < 100 else (math.nan, math.nan)

        found, trials = search(StrongWolfe(max_evaluations=30), function)
        beyond = [a for a in trials if a >= 100]
        assert len(beyond) > 2
        assert beyond == sorted(set(beyond), reverse=True)
        assert found.reason == "sufficient decrease"
        assert 99 < found.point.step < 100

    def test_nothing_is_finite(self):
        found, trials = search(
            StrongWolfe(max_evaluations=6), lambda a: (math.nan, math.nan), start=Point(0, 1, -1)
        )
        assert found.point is None
        assert found.reason == "line search failed"
        assert trials == pytest.approx([1, 0.1, 0.01, 1e-3, 1e-4, 1e-5])

    def test_unbounded_below_ends_at_the_lowest(self):
        found, trials = search(StrongWolfe(max_evaluations=8), lambda a: (-a, -1.0))
        assert len(trials) == 8
        assert found.point.step == max(trials) > 4**6
        assert found.reason == "sufficient decrease"

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_the_bound_on_evaluations(self, count):
        """Exact to 10⁻¹², which no polynomial through cosh's points is at once."""
        settings = StrongWolfe(1e-13, 1e-12, max_evaluations=count)
        found, trials = search(settings, lambda a: (math.cosh(a - 3), math.sinh(a - 3)), first=0.5)
        assert len(trials) == count
        assert found.reason == "sufficient decrease"
        assert found.point.value == min(math.cosh(a - 3) for a in trials)

    def test_a_function_that_rises_has_no_point(self):
        """Its slope lies: φ′(0) < 0, and φ rises everywhere."""
        found, _ = search(StrongWolfe(), lambda a: (a, 1.0), start=Point(0.0, 0.0, -1.0))
        assert found.point is None

    def test_rounding_at_a_flat_minimum(self):
        """Of 1 + (α − 1)²/10¹⁸ the value is noise in float64: the slopes lead to the minimum."""

        def function(a):
            return 1 + (2e-16 if a else 0.0), 2e-18 * (a - 1)

        for first in (1e-3, 1.05, 1.7, 1e3):
            found, _ = search(StrongWolfe(curvature=0.1), function, first, rounding=1e-15)
            assert found.reason == "at the limits of rounding"
            assert found.point.step == pytest.approx(1.0, abs=0.1)
            assert found.evaluations <= 10
        assert search(StrongWolfe(curvature=0.1), function, 1.05)[0].point is None

    def test_a_value_that_stays_the_same(self):
        """The slopes alone lead to the minimum."""
        found, _ = search(StrongWolfe(curvature=0.1), lambda a: (1.0, 2e-18 * (a - 1)), 1.7)
        assert found.point.step == pytest.approx(1.0, abs=0.1)

    def test_rounding_excuses_no_rise_beyond_it(self):
        """A value higher by 10⁻¹² than the start's, where rounding is 10⁻¹⁵."""

        def function(a):
            return 1 + (1e-12 if a else 0.0), 2e-18 * (a - 1)

        assert search(StrongWolfe(), function, 1.0, rounding=1e-15)[0].point is None

    @pytest.mark.parametrize(
        "settings",
        [
            {"sufficient_decrease": 0.0},
            {"sufficient_decrease": -1.0},
            {"curvature": 1.0},
            {"curvature": 1e-5},
            {"sufficient_decrease": 0.9},
            {"curvature": math.nan},
            {"max_evaluations": 0},
        ],
    )
    def test_refuses(self, settings):
        (name,) = settings
        with pytest.raises(ConfigurationError, match=name):
            StrongWolfe(**settings)


class TestArmijo:
    def test_halves_by_hand(self):
        """φ = (α − 3)², φ(0) = 9, φ′(0) = −6, c = ½: φ(α) ≤ 9 − 3α, that is α ≤ 3."""
        found, trials = search(Armijo(sufficient_decrease=0.5), parabola, 16.0)
        assert trials == [16.0, 8.0, 4.0, 2.0]
        assert found.point == Point(2.0, 1.0, -2.0)
        assert found.reason == "sufficient decrease"

    def test_shrinks_as_told(self):
        """c = 0.1: 9 − 0.6α is met by α ≤ 5.4; 16, 12.8, 10.24, 8.192, 6.55, 5.24."""
        found, trials = search(Armijo(0.1, shrinking_factor=0.8), parabola, 16.0)
        assert trials == pytest.approx([16 * 0.8**k for k in range(6)])
        assert found.point.step == trials[-1]

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_shortens(self, bad):
        found, trials = search(Armijo(), lambda a: (bad, bad) if a > 1 else (-a, -1.0), 8.0)
        assert trials == [8.0, 4.0, 2.0, 1.0]
        assert found.point.step == 1.0

    def test_the_bound_on_evaluations(self):
        found, trials = search(
            Armijo(max_evaluations=3), lambda a: (a, 1.0), start=Point(0.0, 0.0, -1.0)
        )
        assert trials == [1.0, 0.5, 0.25]
        assert found.point is None
        assert found.reason == "line search failed"

    def test_below_rounding_no_rise_is_enough(self):
        start = Point(0.0, 1.0, -1e-20)
        assert search(Armijo(), lambda a: (1.0, 0.0), rounding=1e-15, start=start)[0].point
        assert search(Armijo(), lambda a: (1.0, 0.0), start=start)[0].point
        rising = search(Armijo(), lambda a: (1 + 1e-15, 0.0), rounding=1e-15, start=start)
        assert rising[0].point is None

    @pytest.mark.parametrize(
        "settings",
        [
            {"sufficient_decrease": 0.0},
            {"sufficient_decrease": 1.0},
            {"shrinking_factor": 0.0},
            {"shrinking_factor": 1.0},
            {"shrinking_factor": math.nan},
            {"max_evaluations": 0},
        ],
    )
    def test_refuses(self, settings):
        (name,) = settings
        with pytest.raises(ConfigurationError, match=name):
            Armijo(**settings)
