"""When curves cross, worked out by hand."""

import math

import numpy as np
import pytest
from comparison.race import quotient, quotient_interval, race
from comparison.results import load

from tests.scripts.comparison.synthetic import agent_run, save


def found(directory, first, second):
    """The race of two agents with one curve each."""
    both = {"a": first, "b": second}
    runs = {f"{name}_E_0": agent_run(name, "E", 0, [1], curve) for name, curve in both.items()}
    results = load(save(directory, runs))
    return race(results.select("a", "E"), results.select("b", "E"))


def learning(budget, points):
    """The same way to learn, at 1,000 steps a second: 100 from step 2,000 on."""
    steps = np.linspace(budget / points, budget, points)
    return [[s, s / 1000, min(s / 20, 100)] for s in steps]


@pytest.mark.parametrize("budgets", [(100_000, 100_000), (100_000, 1_000_000), (1_000_000, 10_000)])
def test_neither_budget_nor_recorded_points_matter(budgets, tmp_path):
    ours, theirs = (learning(budget, budget // 500) for budget in budgets)
    crossed = found(tmp_path, ours, theirs)
    assert crossed.target == 100
    assert crossed.steps == pytest.approx((2000, 2000))
    assert crossed.seconds == pytest.approx((2, 2))


def test_between_points_the_way_is_straight(tmp_path):
    ours = [[0, 0.0, 0.0], [1000, 10.0, 100.0]]
    theirs = [[0, 0.0, 0.0], [700, 3.0, 0.0], [800, 4.0, 40.0]]
    crossed = found(tmp_path, ours, theirs)
    assert crossed.target == 40
    assert crossed.steps == pytest.approx((400, 800))
    assert crossed.seconds == pytest.approx((4, 4))


def test_the_first_time_counts(tmp_path):
    falling = [[100, 1.0, 0.0], [200, 2.0, 80.0], [300, 3.0, 50.0]]
    crossed = found(tmp_path, [[100, 1.0, 60.0], [300, 2.0, 70.0]], falling)
    assert crossed.target == 50
    assert crossed.steps == pytest.approx((100, 162.5))


def test_never(tmp_path):
    crossed = found(tmp_path, [[100, 1.0, 0.0], [200, 2.0, 10.0]], learning(1000, 2))
    assert crossed.steps[0] == crossed.seconds[0] == math.inf
    assert found(tmp_path / "none", [[100, 1.0, math.nan]], learning(1000, 2)) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "ratio"),
    [(1, 4, 0.25), (math.inf, 4, math.nan), (1, math.inf, math.nan), (1, 0, math.nan)],
)
def test_quotient(ours, theirs, ratio):
    assert quotient(ours, theirs) == pytest.approx(ratio, nan_ok=True)


def straight(directory, ours, theirs):
    """Runs whose curves climb to such returns over 1,000 steps: in 1 s, and in 10 s."""
    sides = {"a": (ours, 1.0), "b": (theirs, 10.0)}
    runs = {
        f"{name}_E_{s}": agent_run(name, "E", s, [1], [[0, 0.0, 0.0], [1000, seconds, end]])
        for name, (ends, seconds) in sides.items()
        for s, end in enumerate(ends)
    }
    results = load(save(directory, runs))
    return results.select("a", "E"), results.select("b", "E")


def test_interval_of_the_ratio(tmp_path):
    """Ours reach 100 at 50 %, 40 % or 33 % of their second, depending on who is drawn."""
    ratio = quotient_interval(*straight(tmp_path, [200, 300], [100, 100]), True, 500)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.04, 1 / 30, 0.05))
    in_steps = quotient_interval(*straight(tmp_path, [200, 300], [100, 100]), False, 500)
    assert (in_steps.value, in_steps.low, in_steps.high) == pytest.approx((0.4, 1 / 3, 0.5))


def test_interval_of_the_ratio_knows_never(tmp_path):
    """A quarter of the resamples has the run alone that does not learn."""
    ratio = quotient_interval(*straight(tmp_path, [400, 0], [100, 100]), True, 500)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.05, 0.025, math.inf))
    never = quotient_interval(*straight(tmp_path / "never", [50, 0], [100, 100]), True, 500)
    assert (never.value, never.low, never.high) == (math.inf, math.inf, math.inf)


def test_the_other_side_is_drawn_too(tmp_path):
    """Its target is that of its own resample: 50, 100 or 150."""
    ratio = quotient_interval(*straight(tmp_path, [300, 300], [50, 150]), True, 500)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1 / 30, 1 / 60, 0.05))


def test_single_runs_have_no_interval(tmp_path):
    ratio = quotient_interval(*straight(tmp_path, [200], [100]), True, 500)
    assert ratio.value == pytest.approx(0.05)
    assert math.isnan(ratio.low)
