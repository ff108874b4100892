"""The sentences say what small cases, worked out by hand, are."""

import numpy as np
import pytest
from comparison import contest, findings
from comparison.contest import Scale
from comparison.results import load
from comparison.targets import Target, choose

from tests.scripts.comparison.synthetic import agent_run, diverged, optimizer_run, save, too_slow

FEW = 100  # bootstrap resamples


def climb(end, steps=1000, seconds=10.0):
    """A straight line from 0."""
    return [[i * steps / 10, i * seconds / 10, i * end / 10] for i in range(11)]


def compared(directory, runs, **changed):
    results = load(save(directory, runs, **changed))
    return findings.of_agents(results, contest.of_agents(results, FEW))


def two(ours, theirs, our_curve=None, their_curve=None, task="E"):
    """Runs of `a` and of `b` with these final scores."""
    sides = {"a": (ours, our_curve), "b": (theirs, their_curve)}
    return {
        f"{name}_{task}_{seed}": agent_run(name, task, seed, [score], curve or climb(100))
        for name, (scores, curve) in sides.items()
        for seed, score in enumerate(scores)
    }


class TestAgents:
    def test_ahead(self, tmp_path):
        (found,) = compared(tmp_path, two([6, 7, 8, 9, 10], [1, 2, 3, 4, 5]))
        assert found.verdict == "ahead"
        assert found.text == "a is above b on E with probability 1.00 [1.00, 1.00]."
        assert found.more.startswith("Interquartile means: 8.00 [")
        assert "; 5 and 5 runs." in found.more

    def test_behind(self, tmp_path):
        (found,) = compared(tmp_path, two([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]))
        assert found.verdict == "behind"
        assert found.text.startswith("a is behind b on E: it is above with probability 0.00 [")

    def test_undecided(self, tmp_path):
        (found,) = compared(tmp_path, two([1, 3, 5, 7], [2, 4, 6, 8]))
        assert found.verdict == "undecided"
        # Of 16 pairs 3 + 2 + 1 have the first above.
        assert "a is above with probability 0.38 [" in found.text

    def test_alike(self, tmp_path):
        (found,) = compared(tmp_path, two([500] * 3, [500] * 3))
        assert found.text == "a and b end alike on E: every run at 500."

    def test_too_few_runs(self, tmp_path):
        (found,) = compared(tmp_path, two([5], [1, 2, 3]))
        assert found.verdict == "undecided"
        assert found.text == "a and b cannot be compared on E: 1 and 3 finished runs."

    def test_average_over_tasks(self, tmp_path):
        runs = two([6, 7, 8, 9], [1, 2, 3, 4]) | two([1, 2, 3, 4], [6, 7, 8, 9], task="F")
        found = compared(tmp_path, runs)
        assert [f.verdict for f in found] == ["ahead", "behind", "undecided"]
        assert "on average over 2 tasks" in found[2].text
        assert "probability 0.50 [" in found[2].text

    def test_how_soon_the_others_end_is_reached(self, tmp_path):
        # Ours climbs to 200 in 1000 steps and 4 s, theirs to 100 in 1000 steps and 10 s.
        runs = two([9, 8, 7], [1, 2, 3], climb(200, seconds=4.0), climb(100))
        more = compared(tmp_path, runs)[0].more
        assert "b trains to a mean return of 100; a gets there in " in more
        steps, seconds = (float(more.split(" times)")[i].split("(")[-1]) for i in (0, 1))
        assert steps == pytest.approx(0.5, abs=0.02)  # points are 1/80 of the curve apart
        assert seconds == pytest.approx(0.2, abs=0.01)

    def test_no_seconds_where_they_do_not_count(self, tmp_path):
        runs = two([9, 8, 7], [1, 2, 3], climb(200), climb(100))
        more = compared(tmp_path, runs, wall_clock_counts=False)[0].more
        assert " steps against " in more
        assert " s against" not in more

    def test_seconds_are_those_of_the_mean_seed(self, tmp_path):
        # Seeds of 10, 20 and 30 s: half of the way is at 10 s.
        runs = two([1, 2, 3], [3, 2, 1], climb(200), climb(100))
        for seed in range(3):
            runs[f"a_E_{seed}"]["curve"] = climb(200, seconds=10.0 * (seed + 1))
        more = compared(tmp_path, runs)[0].more
        found = float(more.split(" and ")[-1].split(" s against")[0])
        assert found == pytest.approx(10, abs=0.3)

    def test_few_runs_apart_are_said_to_be_few(self, tmp_path):
        (found,) = compared(tmp_path, two([4, 5, 6], [1, 2, 3]))
        assert found.verdict == "undecided"
        assert found.text.endswith("1.00]; that so few runs fall so by chance has p = 0.1.")

    def test_end_that_is_never_reached(self, tmp_path):
        runs = two([1, 2, 3], [9, 8, 7], climb(50), climb(100))
        more = compared(tmp_path, runs)[0].more
        assert "mean return of 100, which a does not reach within 1,000 steps." in more

    def test_unequal_budgets_are_said(self, tmp_path):
        runs = two([9, 8, 7], [1, 2, 3], climb(200, steps=500), climb(100))
        assert compared(tmp_path, runs)[0].more.endswith("Budgets: 500 steps against 1,000.")
        runs = two([9, 8, 7], [1, 2, 3], climb(200, steps=1000), climb(100, steps=1050))
        assert "Budgets" not in compared(tmp_path / "even", runs)[0].more

    @pytest.mark.parametrize(("cpu", "said"), [(8.9, True), (9.1, False), (None, False)])
    def test_runs_that_shared_their_core_are_counted(self, cpu, said, tmp_path):
        runs = two([9, 8, 7], [1, 2, 3])
        runs["a_E_1"] |= {"seconds": 10.0, "cpu_seconds": cpu}
        texts = [found.text for found in compared(tmp_path, runs)]
        assert any("1 of 6 runs had less than 90% of a core" in text for text in texts) is said

    def test_failed_and_missing_come_first(self, tmp_path):
        runs = two([1, 2, 3], [4, 5, 6])
        runs["a_E_2"] |= {"status": "failed", "error": "ValueError: broken"}
        runs["b_E_2"] = None
        found = compared(tmp_path, runs)
        assert found[0].text == "1 of 6 runs failed: a_E_2."
        assert found[1].text == "1 of 6 runs is missing: b_E_2."
        assert "2 and 2 runs" in found[2].more

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ([0.004, 0.01], "keeps to its bound in all 4 logged updates, the largest at 1.00"),
            ([0.004, 0.012], "is above its bound in 2 of 4 logged updates, the largest at 1.20"),
        ],
    )
    def test_bound_on_the_kl(self, tmp_path, values, said):
        runs = two([1, 2], [])
        for run in runs.values():
            run["diagnostics"] = {"kl_bound": 0.01, "kl": [[i, v] for i, v in enumerate(values)]}
        (found,) = compared(tmp_path, runs)
        assert said in found.text

    @pytest.mark.parametrize(("slower", "said"), [(1.4, False), (1.6, True)])
    def test_unequal_speeds_are_said(self, tmp_path, slower, said):
        runs = two([1, 2], [])
        for name, factor in zip(runs, (1.0, slower), strict=True):
            runs[name] |= {"steps": 1000, "seconds": 2.0 * factor}
        texts = [each.text for each in compared(tmp_path, runs)]
        assert (
            "Runs of one kind were not equally fast, by 1.6 times for a on E" in str(texts)
        ) == said

    def test_bound_that_changes_in_training(self, tmp_path):
        """The second update of two is above what was in force then, not above the first's."""
        runs = two([1, 2], [])
        for run in runs.values():
            kl, bounds = [[1, 0.009], [2, 0.002]], [[1, 0.01], [2, 0.001]]
            run["diagnostics"] = {"kl_bound": 0.01, "kl": kl, "target_kl": bounds}
        (found,) = compared(tmp_path, runs)
        assert "is above its bound in 2 of 4 logged updates, the largest at 2.00" in found.text


class TestScale:
    def test_from_the_start_of_learning_to_the_best_run(self, tmp_path):
        curves = [[0, 0, 10.0], [100, 1, 50.0]], [[0, 0, 30.0], [100, 1, 50.0]]
        results = load(save(tmp_path, two([100, 60], [40, 50], *curves)))
        assert contest.of_agents(results, FEW).scales == {"E": Scale(20.0, 100.0)}

    def test_nobody_learned(self, tmp_path):
        results = load(save(tmp_path, two([5, 6], [7, 8], [[0, 0, 90.0]], [[0, 0, 90.0]])))
        assert contest.of_agents(results, FEW).scales == {"E": Scale(5.0, 8.0)}

    def test_all_alike_are_all_best(self):
        assert Scale(3.0, 3.0).normalised(np.array([3.0, 3.0])).tolist() == [1.0, 1.0]


def rates(name, losses, task="T", **changed):
    """Runs by rate and seed; losses fall to these values, point by point."""
    return {
        f"{name}_{task}_{seed}_{rate}": optimizer_run(name, task, seed, rate, curve, **changed)
        for rate, curves in losses.items()
        for seed, curve in enumerate(curves)
    }


class TestOptimizers:
    def test_best_rate_is_that_of_the_smallest_mean_loss(self, tmp_path):
        runs = rates("a", {0.1: [[1.0], [1.2]], 0.01: [[0.1], [2.0]], 1.0: [[0.2], [0.1]]})
        runs["a_T_0_1.0"] |= diverged(runs["a_T_0_1.0"])
        results = load(save(tmp_path, runs))
        chosen = contest.of_optimizers(results, FEW).runs["a", "T"]
        assert {run.rate for run in chosen} == {0.01}

    def test_without_a_target_it_is_the_worst_of_the_final_losses(self, tmp_path):
        runs = rates("a", {0.1: [[1.0, 0.5], [1.0, 0.6], [1.0, 0.4]]})
        runs |= rates("b", {0.1: [[2.0, 1.0]] * 3})
        runs |= rates("c", {0.1: [[3.0]] * 3})
        for seed in range(3):
            runs[f"c_T_{seed}_0.1"] |= diverged(runs[f"c_T_{seed}_0.1"])
        found = contest.of_optimizers(load(save(tmp_path, runs)), FEW)
        assert choose(found, {}) == {"T": Target(1.0)}

    def test_target_is_the_metric_that_is_named_or_else_the_loss(self, tmp_path):
        runs = rates("a", {0.1: [[1.0]]})
        runs |= rates("a", {0.1: [[5.0]]}, task="R", larger_is_better=False)
        runs["a_R_0_0.1"]["metric"] = "reconstruction_error"
        found = contest.of_optimizers(load(save(tmp_path, runs)), FEW)
        accuracy, error = {"accuracy": 0.95}, {"reconstruction_error": 2.0}
        larger = Target(0.95, "accuracy", larger_is_better=True, asked=True)
        smaller = Target(2.0, "reconstruction_error", asked=True)
        assert choose(found, accuracy | error) == {"T": larger, "R": smaller}
        assert choose(found, accuracy) == {"T": larger, "R": Target(5.0)}
        loss = Target(0.7, asked=True)
        assert choose(found, accuracy | {"loss": 0.7}) == {"T": larger, "R": loss}

    def test_where_a_run_comes_to_a_metric(self, tmp_path):
        run = optimizer_run("a", "T", 0, 0.1, [1.0])
        run["evaluations"] = [[0, 0.0, 2.0, 0.1], [10, 0.5, 1.0, 0.8], [20, 1.0, 1.5, 0.9]]
        (loaded,) = load(save(tmp_path, {"a_T_0_0.1": run})).runs
        assert Target(0.8, "accuracy", larger_is_better=True).first(loaded, 0) == 10
        assert Target(0.85, "accuracy", larger_is_better=True).first(loaded, 1) == 1.0
        assert Target(0.95, "accuracy", larger_is_better=True).first(loaded, 0) == float("inf")
        assert Target(0.5, "reconstruction_error").first(loaded, 0) == 0

    def test_time_to_target_and_step_time(self, tmp_path):
        runs = rates("a", {0.1: [[1.0, 0.5]] * 3}, step_seconds=0.1)
        runs |= rates("b", {0.1: [[2.0, 1.5, 1.2, 1.0]] * 3}, step_seconds=0.05)
        results = load(save(tmp_path, runs))
        found = contest.of_optimizers(results, FEW)
        (said,) = findings.of_optimizers(results, found, choose(found, {}))
        assert "Test loss 1: a gets there in 10 steps against 40 (0.25 times)" in said.more
        assert "and 0.5 s against 2 (0.25 times)." in said.more
        assert "A step takes 2.00 times as long as one of b." in said.more

    @pytest.mark.parametrize(("larger", "verdict"), [(True, "behind"), (False, "ahead")])
    def test_smaller_may_be_better(self, tmp_path, larger, verdict):
        changed = {"larger_is_better": larger}
        runs = {
            f"{name}_T_{seed}_1": optimizer_run(
                name, "T", seed, 1.0, [1.0], metric + seed / 100, **changed
            )
            for name, metric in (("a", 0.1), ("b", 0.9))
            for seed in range(4)
        }
        results = load(save(tmp_path, runs))
        found = contest.of_optimizers(results, FEW)
        (said,) = findings.of_optimizers(results, found, {"T": Target(1.0)})
        assert said.verdict == verdict
        best = found.normalised("b" if larger else "a")[0]
        assert best.max() == 1

    def test_diverged_too_slow_and_refused_are_noted(self, tmp_path):
        runs = rates("a", {0.1: [[1.0]], 0.3: [[2.0]], 0.9: [[2.0]], 1.0: [[2.0]]})
        runs["a_T_0_1.0"] |= diverged(runs["a_T_0_1.0"])
        for rate in (0.3, 0.9):
            runs[f"a_T_0_{rate}"] |= too_slow(runs[f"a_T_0_{rate}"])
        refused = [{"name": "b", "task": "T", "reason": "b needs a closure"}]
        results = load(save(tmp_path, runs, does_not_apply=refused))
        said = findings.of_optimizers(
            results, contest.of_optimizers(results, FEW), {"T": Target(1.0)}
        )
        assert [finding.text for finding in said] == [
            "1 of 4 runs diverged, at rates that are too high.",
            "a on T is too slow: a step takes longer than the budget, in 2 of its runs.",
            "b does not apply to T: b needs a closure",
        ]

    def test_median_run_decides(self, tmp_path):
        runs = rates("a", {0.1: [[0.5], [2.0, 0.5], [2.0]]})
        (side,) = contest.of_optimizers(load(save(tmp_path, runs)), FEW).runs.values()
        assert Target(1.0).median(side, 0) == 20
        assert Target(0.1).median(side, 0) == float("inf")
