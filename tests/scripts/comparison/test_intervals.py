"""Estimates are rliable's, intervals those of SciPy's bootstrap."""

import numpy as np
import pytest
from comparison import intervals
from numpy.testing import assert_allclose
from rliable import library, metrics
from scipy import stats


def scores(seed, runs=8, tasks=1):
    return np.random.default_rng(seed).normal(0.5, 0.3, (runs, tasks))


@pytest.mark.parametrize("runs", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("tasks", [1, 3])
class TestAgainstRliable:
    def test_aggregates(self, runs, tasks):
        matrix = scores(0, runs, tasks)
        found = intervals.aggregates(*matrix.T, repetitions=20)
        assert_allclose(found.iqm.value, metrics.aggregate_iqm(matrix))
        assert_allclose(found.gap.value, metrics.aggregate_optimality_gap(matrix))
        if tasks > 1:
            assert_allclose(found.median.value, metrics.aggregate_median(matrix))
        else:  # of one task rliable's median is the mean
            assert_allclose(found.median.value, np.median(matrix))

    def test_probability_of_improvement(self, runs, tasks):
        # Rounded, so that there are ties.
        x, y = (np.round(scores(seed, runs, tasks), 1) for seed in (1, 2))
        sides = [side[:, task] for task in range(tasks) for side in (x, y)]
        found = intervals.improvement(*sides, repetitions=20)
        assert_allclose(found.probability.value, metrics.probability_of_improvement(x, y))


class TestIntervals:
    def test_interquartile_mean_against_scipy(self):
        values = scores(3, 12)[:, 0]
        ours = intervals.interquartile_mean(values, repetitions=4000)
        theirs = stats.bootstrap(
            (values,),
            lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
            n_resamples=4000,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        # Two draws of 4000 resamples: their 2.5 % quantiles have an error of about 0.01.
        assert_allclose([ours.low, ours.high], theirs, atol=0.03)
        assert ours.low < ours.value < ours.high

    def test_probability_against_scipy(self):
        x, y = scores(4, 9)[:, 0] + 0.15, scores(5, 7)[:, 0]
        ours = intervals.improvement(x, y, repetitions=4000).probability

        def above(a, b, axis):
            return (a[..., :, None] > b[..., None, :]).mean(axis=(-2, -1))

        theirs = stats.bootstrap(
            (x, y), above, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        assert_allclose([ours.low, ours.high], theirs, atol=0.04)

    def test_strata_are_not_mixed(self):
        # Within a task all runs are alike: resampling within tasks changes nothing.
        found = intervals.aggregates(np.zeros(5), np.ones(5), repetitions=50)
        assert (found.iqm.low, found.iqm.high) == (found.iqm.value, found.iqm.value)

    def test_several_tasks_against_rliable(self):
        matrix = scores(6, 7, 3)
        ours = intervals.aggregates(*matrix.T, repetitions=4000)
        functions = (
            metrics.aggregate_iqm,
            metrics.aggregate_median,
            metrics.aggregate_optimality_gap,
        )
        _, theirs = library.get_interval_estimates(
            {"x": matrix}, lambda x: np.array([function(x) for function in functions]), reps=4000
        )
        found = [[each.low, each.high] for each in (ours.iqm, ours.median, ours.gap)]
        assert_allclose(found, theirs["x"].T, atol=0.02)

    def test_profile_against_rliable(self):
        matrix, at = scores(7, 7, 3), np.linspace(0, 1, 5)
        ours = intervals.profile(list(matrix.T), at, repetitions=2000)
        value, ends = library.create_performance_profile({"x": matrix}, at, reps=2000)
        assert_allclose(ours[:, 0], value["x"])
        assert_allclose(ours[:, 1:], ends["x"].T, atol=0.05)  # in steps of 1/21

    def test_same_every_time(self):
        values = scores(6)[:, 0]
        first = intervals.interquartile_mean(values, repetitions=50)
        assert intervals.interquartile_mean(values, repetitions=50) == first

    def test_single_run_has_no_interval(self):
        found = intervals.interquartile_mean(np.array([3.0]))
        assert found.value == 3
        assert np.isnan([found.low, found.high]).all()

    def test_band_is_the_interval_of_each_point(self):
        curves = scores(7, 6, 4)
        found = intervals.band(curves, repetitions=4000)
        for column, row in zip(curves.T, found, strict=True):
            one = intervals.interquartile_mean(column, repetitions=4000)
            assert_allclose(row, [one.value, one.low, one.high], atol=0.03)

    def test_profile(self):
        at = np.array([0.0, 0.25, 0.5, 1.0])
        tasks = [np.array([0.1, 0.3]), np.array([0.6, 0.25, 1.0])]
        found = intervals.profile(tasks, at, repetitions=50)
        assert_allclose(found[:, 0], [1, 3 / 5, 2 / 5, 0])
        assert (found[:, 1] <= found[:, 0]).all()
        assert (found[:, 0] <= found[:, 2]).all()


class TestVerdict:
    @pytest.mark.parametrize(
        ("x", "y", "verdict"),
        [
            ([6, 7, 8, 9, 10], [1, 2, 3, 4, 5], "ahead"),
            ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10], "behind"),
            ([1, 3, 5, 7, 9], [2, 4, 6, 8, 10], "undecided"),
            ([3, 4], [1, 2], "undecided"),  # the bootstrap's interval is [1, 1]
            ([5, 5, 5], [5, 5, 5], "undecided"),
            ([2], [1], "undecided"),
            ([500] * 3, [9] * 3, "undecided"),  # 2 of 20 arrangements are as far apart, ties or not
            ([500] * 4, [9] * 4, "ahead"),
        ],
    )
    def test_decided_when_interval_and_test_agree(self, x, y, verdict):
        found = intervals.improvement(np.array(x, float), np.array(y, float), repetitions=200)
        assert found.verdict == verdict

    def test_p_value_over_tasks_against_permutations(self):
        draw = np.random.default_rng(10)
        pairs = [draw.normal(shift, 1, 6) for shift in (0.9, 0, 0.5, 0, 0.6, 0)]
        found = intervals.improvement(*pairs, repetitions=10)
        permuted = []
        for _ in range(4000):
            mixed = [draw.permutation(np.concatenate(pairs[i : i + 2])) for i in (0, 2, 4)]
            permuted.append(np.mean([(m[:6, None] > m[6:]).mean() for m in mixed]))
        distance = abs(found.probability.value - 0.5)
        expected = np.mean(np.abs(np.array(permuted) - 0.5) >= distance - 1e-9)
        assert_allclose(found.p_value, expected, atol=0.015)

    def test_single_runs_decide_nothing_on_any_number_of_tasks(self):
        sides = [np.array([score]) for score in (2.0, 1.0)] * 9
        found = intervals.improvement(*sides, repetitions=10)
        assert found.p_value < 0.05
        assert found.verdict == "undecided"

    def test_p_value_of_few_runs_on_two_tasks(self):
        """Two of 36 arrangements are as far apart; a normal approximation has 0.03."""
        found = intervals.improvement(*map(np.array, [[3, 4], [1, 2]] * 2), repetitions=10)
        assert_allclose(found.p_value, 2 / 36, atol=0.007)

    @pytest.mark.parametrize("runs", [(3, 5), (5, 5), (4, 8), (20, 9)])
    @pytest.mark.parametrize("digits", [1, 9])
    def test_p_value_is_that_of_mann_and_whitney(self, runs, digits):
        """With ties, too, for which SciPy's default is the normal approximation."""
        x, y = (np.round(scores(8 + s, n)[:, 0], digits) for s, n in enumerate(runs))
        found = intervals.improvement(x, y, repetitions=10)
        every = stats.PermutationMethod(n_resamples=30_000, rng=np.random.default_rng(0))
        expected = stats.mannwhitneyu(x, y, method=every).pvalue
        drawn = sum(runs) > 12
        assert_allclose(found.p_value, expected, atol=0.02 if drawn else 1e-9)
