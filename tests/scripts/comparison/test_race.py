"""When curves cross, worked out by hand."""

import math

import numpy as np
import pytest
from comparison.race import quotient, race
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
