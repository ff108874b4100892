"""What BFGS, DFP, SR1 and L-BFGS promise alike: closures, faults and rates."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import BFGS, LBFGS
from npg.optim.objective import UNRESOLVED
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.optim.iterated_kinds import KINDS, Kind, train
from tests.npg.oracles import mlp


@pytest.fixture(params=KINDS)
def kind(request):
    return Kind(request.param)


@pytest.fixture(params=[name for name in KINDS if not Kind(name).fixed])
def searching(request):
    """One that compares values, and does not take any finite point."""
    return Kind(request.param)


@pytest.fixture
def data():
    x = torch.randn(40, 3)
    return x, (x[:, 0] > 0).long() + (x[:, 1] * x[:, 2] > 0)


class TestClosures:
    def test_with_a_prediction_or_without(self, kind, data):
        model = mlp()
        twin = copy.deepcopy(model)
        closure = objective(model, *data)
        train(kind(model), lambda: closure()[0], 4)
        train(kind(twin), objective(twin, *data), 4)
        assert torch.equal(snapshot(model), snapshot(twin))

    def test_of_another_kind_are_told(self, kind, data):
        model, (x, y) = mlp(), data
        start = snapshot(model)

        def goes_back():
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        wrong = {
            "backward": goes_back,
            "vector": lambda: F.cross_entropy(model(x), y, reduction="none"),
            "number": lambda: F.cross_entropy(model(x), y).item(),
            "no graph": lambda: F.cross_entropy(model(x), y).detach(),
            "nothing": lambda: None,
            "no closure": None,
        }
        for closure in wrong.values():
            with pytest.raises(ConfigurationError, match="forward pass only"):
                kind(model).step(closure)
            assert torch.equal(snapshot(model), start)

    def test_that_none_of_the_parameters_takes_part_in(self, kind, data):
        other = mlp()
        with pytest.raises(ConfigurationError, match="does not depend on any of the parameters"):
            kind(mlp()).step(objective(other, *data))

    def test_a_parameter_that_takes_no_part_stays(self, kind, data):
        model, unused = mlp(), nn.Parameter(torch.randn(2))
        before = unused.detach().clone()
        train(kind([*model.parameters(), unused]), objective(model, *data), 5)
        assert torch.equal(unused.detach(), before)

    def test_leave_no_gradients(self, kind, data):
        model = mlp()
        train(kind(model), objective(model, *data), 3)
        assert all(p.grad is None for p in model.parameters())


class TestFaults:
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_no_finite_start(self, kind, bad, data):
        model = mlp()
        start, closure = snapshot(model), objective(model, *data)
        optimizer = kind(model)
        report = optimizer.step(lambda: closure()[0] * bad)
        assert not report.accepted
        assert report.reason == "loss or gradient is not finite"
        assert torch.equal(snapshot(model), start)
        assert optimizer.extra["skipped"] == 1
        assert optimizer.step(closure).accepted

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_no_finite_trial_shortens_the_step(self, kind, bad):
        """−log(1 − x) − 3x + 5, of which only x < 1 is in the domain, from −9."""
        x = nn.Parameter(torch.tensor([-9.0]))

        def closure():
            if x.item() >= 1:
                return x.sum() * bad
            return (5 - torch.log(1 - x) - 3 * x).sum()

        optimizer = kind([x], lr=5.0 if kind.fixed else 1.0)
        reports = train(optimizer, closure, 30)
        assert all(math.isfinite(report.loss_after) for report in reports)
        assert x.item() < 1
        if not kind.fixed:
            assert x.item() == pytest.approx(2 / 3, abs=1e-6)

    def test_a_finite_value_with_a_gradient_that_is_not_is_no_place_to_go(self, kind):
        """x² with a gradient of nan where |x| ≤ ½: the first trial from 1 is 0."""
        x = nn.Parameter(torch.tensor([1.0]))
        optimizer = kind([x])

        def closure():
            return (x.square() if abs(x.item()) > 0.5 else x.square() + (0 * x).sqrt()).sum()

        for _ in range(20):
            optimizer.step(closure)
            assert 0.5 < x.item() <= 1
        assert x.item() < 1

    def test_a_step_that_fails_is_undone_bit_for_bit(self, searching, data):
        model, calls = mlp(), []
        with torch.no_grad():
            next(model.parameters())[0, 0] = -0.0
        start, closure = snapshot(model), objective(model, *data)

        def worse():
            calls.append(0)
            return closure()[0] + (0.0 if len(calls) == 1 else 10.0)

        optimizer = searching(model, deterministic=False)
        report = optimizer.step(worse)
        assert not report.accepted
        assert report.loss_after == report.loss
        assert report.step_length == 0.0
        assert torch.equal(snapshot(model), start)
        assert torch.equal(snapshot(model).signbit(), start.signbit())
        assert optimizer.extra["rejected"] == 1

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_a_zero_gradient_at_the_start(self, kind, sign):
        """At a minimum, and at a saddle, which gradients alone do not tell apart."""
        x = nn.Parameter(torch.zeros(2))
        report = kind([x]).step(lambda: x[0] ** 2 + sign * x[1] ** 2)
        assert (report.accepted, report.reason) == (False, "zero gradient")
        assert report.gradient_norm == 0
        assert torch.equal(x.detach(), torch.zeros(2))

    def test_an_indefinite_hessian(self, searching):
        """x⁴/4 − x²/2 near its maximum: down to one of the minima."""
        x = nn.Parameter(torch.tensor([0.01, -0.02]))
        train(searching([x]), lambda: (x**4 / 4 - x**2 / 2).sum(), 40)
        torch.testing.assert_close(x.detach().abs(), torch.ones(2), rtol=0.0, atol=1e-6)


class TestRates:
    def test_zero_changes_nothing_and_forgets_nothing(self, kind, data):
        model = mlp()
        optimizer, closure = kind(model), objective(model, *data)
        train(optimizer, closure, 3)
        start, before = snapshot(model), copy.deepcopy(optimizer.state_dict())
        rate = optimizer.param_groups[0]["lr"]
        optimizer.param_groups[0]["lr"] = 0.0
        report = optimizer.step(closure)
        assert (report.accepted, report.reason) == (False, "the rate is zero")
        assert torch.equal(snapshot(model), start)
        optimizer.param_groups[0]["lr"] = rate
        after = optimizer.state_dict()
        for name in set(before) - {"npg", "state", "param_groups"}:
            assert str(before[name]) == str(after[name])
        assert optimizer.step(closure).accepted

    def test_zero_from_the_start(self, data):
        model = mlp()
        optimizer = LBFGS(model, lr=0.0)
        start = snapshot(model)
        train(optimizer, objective(model, *data), 2)
        assert torch.equal(snapshot(model), start)

    @pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf])
    def test_that_cannot_work_are_refused(self, kind, rate):
        with pytest.raises(ConfigurationError, match="lr must be finite and not negative"):
            kind(mlp(), lr=rate)
        optimizer, layer = kind(mlp()), nn.Linear(3, 3)
        with pytest.raises(ConfigurationError, match="lr must be finite and not negative"):
            optimizer.add_param_group({"params": layer.parameters(), "lr": rate})
        assert len(optimizer.param_groups) == 1

    def test_are_of_their_groups(self, kind):
        """The first step goes along the gradient, at each group's rate; in the ball at Δ = 1."""
        a, b = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))
        groups = [{"params": [a], "lr": 0.01}, {"params": [b], "lr": 0.03}]
        optimizer = kind(groups)
        assert optimizer.step(lambda: (a**2 + b**2).sum() / 2).accepted
        assert (1 - b.item()) / (1 - a.item()) == pytest.approx(3.0)


def test_the_report_of_several_iterations_is_that_of_the_last_that_moved():
    x = nn.Parameter(torch.tensor([-1.2, 1.0]))
    optimizer = BFGS([x], iterations=200)
    report = optimizer.step(lambda: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)
    assert report.accepted
    assert report.loss == pytest.approx(24.2)
    assert report.loss_after < 1e-20
    assert report.fraction == 1.0
    assert report.step_length > 0
    assert math.isnan(report.kl)
    assert "conditions" not in report.reason, "it says what ended them"


@pytest.mark.parametrize("kind", [BFGS, LBFGS])
def test_a_step_below_the_resolution_is_no_step(kind):
    """A step of 1e-20 from 1 rounds to none, and teaches nothing."""
    x = nn.Parameter(torch.ones(1))
    optimizer = kind([x], line_search=None)
    report = optimizer.step(lambda: 1e-20 * x.sum())
    assert (report.accepted, report.reason) == (False, UNRESOLVED)
    assert (report.loss_after, report.kl) == (report.loss, 0.0)
    assert float(x.detach()) == 1.0
