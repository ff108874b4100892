"""figures.py: what its pictures show is so, and they are written whole or not at all."""

import functools

import numpy as np
import pytest
from drawings import (
    estimator_variances,
    gradient_estimators,
    loss_flow,
    minimisation,
    parametrisations,
    sampling_view,
)
from figures import FIGURES, main
from PIL import Image
from scipy.optimize import minimize_scalar

flow = functools.cache(loss_flow.flow)


SMALLER = [
    (loss_flow, "flow", flow),
    (minimisation, "PROBLEMS", minimisation.PROBLEMS[:3]),
    (parametrisations, "RATES", parametrisations.RATES[:2]),
    (parametrisations, "FINE", parametrisations.RATES[1]),
    (sampling_view, "CANDIDATES", 20),
    (gradient_estimators, "REPETITIONS", 5),
    (estimator_variances, "SIZES", [2, 8]),
]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_small_picture(name, tmp_path, capsys, monkeypatch):
    for module, what, smaller in SMALLER:
        monkeypatch.setattr(module, what, smaller)
    output = tmp_path / "picture.png"
    assert main([name, "--output", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    assert output.stat().st_size < 150_000
    with Image.open(output) as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("output", ["picture.pdf", "nowhere/picture.png"])
def test_what_cannot_be_written_exits_with_2(output, capsys):
    assert main(["loss-flow", "--output", output]) == 2
    assert "a .png file in a directory that exists" in capsys.readouterr().err


def test_subcommands_are_listed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in FIGURES)


class TestLossFlow:
    @staticmethod
    def minima():
        """The two minima of f, by SciPy."""

        def f(x):
            return x * (x - 1) * (x - 3) ** 2 + loss_flow.LIFT

        found = [minimize_scalar(f, bounds=b, method="bounded") for b in ((0, 1), (2.5, 3.5))]
        return [(m.x, m.fun) for m in found]

    def test_both_ends(self):
        (global_x, least), (local_x, local) = self.minima()
        assert least == pytest.approx(0, abs=1e-6)
        assert (global_x, local_x) == pytest.approx((0.41, 3), abs=0.005)
        assert flow().end == pytest.approx(global_x, abs=1e-4)
        descending = loss_flow.descent()
        assert descending.end == pytest.approx(local_x, abs=1e-4)
        assert descending.loss[-1] == pytest.approx(local, abs=1e-6)

    def test_the_loss_falls_as_an_exponential_without_a_valley(self):
        """To the order of the step: (1 − η)ⁿ e^(nη) is off by ½ η t, 5 % at t = 10."""
        near = flow(-0.5)
        for t in (1, 5, 10):
            ratio = near.loss[t * 100] / near.loss[0] * np.exp(t)
            assert ratio == pytest.approx(1, abs=0.005 * t)

    def test_before_the_valley_too(self):
        path = flow()
        assert path.loss[200] / path.loss[0] * np.exp(2) == pytest.approx(1, abs=0.02)

    def test_a_low_bound_cannot_leave(self):
        path = flow(bound=loss_flow.LOW_BOUND)
        assert path.x[300:].min() > 2.5

    def test_a_least_value_above_zero_finds_no_rest(self):
        path = flow(lift=loss_flow.LIFT + loss_flow.RAISED)
        assert np.ptp(path.x[-500:]) > 0.5
        settled = flow()
        assert np.ptp(settled.x[-200:]) < 1e-4


class TestMinimisation:
    @pytest.mark.parametrize("method", [method for method, _, _ in minimisation.PAIRS])
    def test_paths_end_in_the_minimum(self, method):
        places = minimisation.path(method)
        assert tuple(places[0]) == minimisation.START
        assert places[-1] == pytest.approx([1, 1], abs=1e-7)

    def test_the_numbers_are_those_of_the_runs(self, tmp_path, monkeypatch):
        problems = minimisation.PROBLEMS[:2]
        monkeypatch.setattr(minimisation, "PROBLEMS", problems)
        found = minimisation.draw(tmp_path / "picture.png")
        counted = sum(minimisation.ours(problem, "bfgs").evaluations for problem in problems)
        assert found["bfgs"] == f"solves 2 of 2, {counted} evaluations"
        assert {"SciPy's BFGS", "SciPy's trust-exact"} <= set(found)
