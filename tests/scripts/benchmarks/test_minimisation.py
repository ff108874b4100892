"""What the benchmark of the minimisers counts."""

import numpy as np
import pytest
import torch
from benchmarks.minimisation import compare
from benchmarks.minimisers import Counted, Run, first_within, ours, scipys, torchs
from benchmarks.more_garbow_hillstrom import PROBLEMS

from npg.optim.minimize import METHODS

BY_NAME = {problem.name: problem for problem in PROBLEMS}
ROSENBROCK = BY_NAME["Rosenbrock"]


class TestCounted:
    def test_value_and_gradient_at_one_point_are_one(self):
        counted = Counted(ROSENBROCK)
        x = ROSENBROCK.x0.requires_grad_()
        counted(x).backward()
        counted(x.detach())
        counted.with_gradient(x.detach().numpy())
        assert list(counted.values.values()) == pytest.approx([24.2])
        counted(x.detach() + 1e-12)
        assert len(counted.values) == 2

    def test_a_point_changed_in_place_is_another(self):
        counted = Counted(ROSENBROCK)
        x = ROSENBROCK.x0
        counted(x)
        x += 1
        counted(x)
        assert len(counted.values) == 2

    def test_transforms_are_no_evaluations(self):
        counted = Counted(ROSENBROCK)
        torch.func.hessian(counted)(ROSENBROCK.x0)
        assert not counted.values

    def test_derivatives(self):
        """Rosenbrock's by hand, at the start (−1.2, 1)."""
        counted = Counted(ROSENBROCK)
        x = ROSENBROCK.x0.numpy()
        value, gradient = counted.with_gradient(x)
        assert value == pytest.approx(24.2)
        np.testing.assert_allclose(gradient, [-215.6, -88])
        np.testing.assert_allclose(counted.hessian(x), [[1330, 480], [480, 200]])
        np.testing.assert_allclose(counted.hessian_product(x, np.array([1.0, -1])), [850, 280])
        assert counted.products == 3  # two columns and one product


class TestFirstWithin:
    def test_the_minimum_that_the_run_ended_at(self):
        values = [3.0, 1.0 + 1e-7, 1.0 + 1e-9, 0.5, 1e-9, 0.0]
        assert first_within(values, 0.0, (0.0, 1.0)) == 5
        assert first_within(values[:3], 1.0 + 1e-9, (0.0, 1.0)) == 3

    def test_large_minima_count_relatively(self):
        assert first_within([200.0, 100 + 1e-6, 100.0], 100.0, (100.0,)) == 2

    @pytest.mark.parametrize("end", [1e-7, 0.5, 0.9, float("nan"), float("inf")])
    def test_elsewhere_is_not_solved(self, end):
        assert first_within([3.0, 0.0, end], end, (0.0, 1.0)) is None


SCIPYS = [(scipys, peer) for peer in ("BFGS", "L-BFGS-B", "trust-exact", "trust-krylov")]


@pytest.mark.parametrize(("minimise", "method"), [*SCIPYS, *((ours, name) for name in METHODS)])
def test_minimisers_count_as_many(minimise, method):
    """SciPy's own count is the counter's oracle, which then is ours'; no point is asked twice."""
    solved = minimise(BY_NAME["Beale"], method)
    assert solved.points == solved.reported
    assert solved.evaluations <= solved.points
    assert solved.end < 1e-14


def test_newton_cg_ends_at_the_minimum():
    solved = scipys(BY_NAME["Wood"], "Newton-CG")
    assert solved.end < 1e-14
    assert solved.products > 0


def test_torchs_lbfgs_takes_as_many_evaluations_as_ours():
    names = ["Rosenbrock", "Beale", "Helical valley", "Gulf research", "Wood"]
    runs = [(ours(BY_NAME[n], "l-bfgs"), torchs(BY_NAME[n], "torch's LBFGS")) for n in names]
    us, them = (sum(run.evaluations for run in side) for side in zip(*runs, strict=True))
    assert 0.8 * them < us <= 1.2 * them
    assert all(run.reported >= run.points > 0 for _, run in runs)


def test_totals_and_failures():
    """Totals over what both solve; a failure where the peer alone does."""

    def run(evaluations):
        return Run(evaluations, 0, 0, 0, 0.0)

    counts = [(10, 20), (30, 5), (None, 7), (8, None), (None, None)]
    pairs = [(p, run(a), run(b)) for p, (a, b) in zip(PROBLEMS, counts, strict=False)]
    total, mean, failures = compare("bfgs", "BFGS", "<= 1.2", pairs)
    assert (total.ours, total.other, total.ratio) == ("40", "BFGS 25", 1.6)
    assert mean.ratio == pytest.approx(3**0.5)
    assert (failures.ours, failures.other) == ("solves 3 of 5", "BFGS 3")
    assert (failures.ratio, failures.met, total.met) == (1, "NO", "NO")
    assert PROBLEMS[2].name in failures.what
    assert compare("dfp", "BFGS", "", pairs)[-1].met == ""
