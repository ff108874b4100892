"""What BFGS, DFP, SR1 and L-BFGS promise alike: closures, faults, states and copies."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import BFGS, DFP, LBFGS, SR1
from npg.steps import Armijo
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.oracles import mlp

KINDS = {
    "bfgs": (BFGS, {}),
    "bfgs-armijo": (BFGS, {"line_search": Armijo(), "powell_damping": 0.2}),
    "dfp": (DFP, {}),
    "lbfgs": (LBFGS, {"history_size": 3}),
    "lbfgs-fixed": (LBFGS, {"line_search": None, "lr": 0.1, "powell_damping": 0.2}),
    "sr1": (SR1, {}),
    "sr1-search": (SR1, {"globalisation": "line-search"}),
}


class Kind:
    """One of the optimizers with its settings; called as its class would be."""

    def __init__(self, name):
        self.type, self.options = KINDS[name]
        self.fixed = self.options.get("line_search", 0) is None

    def __call__(self, model, **options):
        return self.type(model, **{**self.options, **options})


@pytest.fixture(params=KINDS)
def kind(request):
    return Kind(request.param)


@pytest.fixture
def data():
    x = torch.randn(40, 3)
    return x, (x[:, 0] > 0).long() + (x[:, 1] * x[:, 2] > 0)


def train(optimizer, closure, steps):
    return [optimizer.step(closure) for _ in range(steps)]


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

    def test_a_step_that_fails_is_undone_bit_for_bit(self, kind, data):
        if kind.fixed:
            pytest.skip("takes any finite point")
        model, calls = mlp(), []
        with torch.no_grad():
            next(model.parameters())[0, 0] = -0.0
        start, closure = snapshot(model), objective(model, *data)

        def worse():
            calls.append(0)
            return closure()[0] + (0.0 if len(calls) == 1 else 10.0)

        optimizer = kind(model, deterministic=False)
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

    def test_an_indefinite_hessian(self, kind):
        """x⁴/4 − x²/2 near its maximum: down to one of the minima."""
        if kind.fixed:
            pytest.skip("goes so far without a search")
        x = nn.Parameter(torch.tensor([0.01, -0.02]))
        train(kind([x]), lambda: (x**4 / 4 - x**2 / 2).sum(), 40)
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

    def test_are_of_their_groups(self, kind):
        """The first step goes along the gradient, at each group's rate; in the ball at Δ = 1."""
        a, b = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))
        groups = [{"params": [a], "lr": 0.01}, {"params": [b], "lr": 0.03}]
        optimizer = kind(groups)
        assert optimizer.step(lambda: (a**2 + b**2).sum() / 2).accepted
        assert (1 - b.item()) / (1 - a.item()) == pytest.approx(3.0)


class TestIterations:
    def test_are_so_many_single_steps(self, kind, data):
        model = mlp()
        twin = copy.deepcopy(model)
        single = kind(model, deterministic=False)
        reports = train(single, objective(model, *data), 20)
        together = kind(twin, iterations=20, deterministic=False)
        report = together.step(objective(twin, *data))
        assert all(r.accepted for r in reports)
        assert torch.equal(snapshot(model), snapshot(twin))
        assert report.loss == reports[0].loss
        assert report.loss_after == reports[-1].loss_after
        assert report.evaluations == 1 + sum(r.evaluations - 1 for r in reports)
        assert single.extra == together.extra

    def test_end_at_the_minimum(self):
        x = nn.Parameter(torch.tensor([3.0]))
        calls = []

        def closure():
            calls.append(0)
            return x.square().sum()

        report = BFGS([x], iterations=50).step(closure)
        assert report.accepted
        assert report.loss_after == 0
        assert len(calls) == report.evaluations < 8


class TestState:
    @pytest.mark.parametrize("mixed", [False, True])
    def test_resumes_bit_for_bit(self, kind, data, mixed):
        """Through a file; a float32 layer before float64 ones keeps its float64 H."""

        def build():
            model = mlp()
            return model if not mixed else nn.ModuleList([model, nn.Linear(3, 3).float()])

        def loss_of(model):
            if not mixed:
                return objective(model, *data)
            x, y = data
            return lambda: F.cross_entropy(model[0](x) + model[1](x.float()), y)

        def parameters(model):
            return list(model.parameters())[::-1]  # float32 first

        torch.manual_seed(1)
        model = build()
        optimizer = kind(parameters(model))
        train(optimizer, loss_of(model), 5)
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        weights, state = torch.load(file)
        twin = build()
        twin.load_state_dict(weights)
        resumed = kind(parameters(twin))
        resumed.load_state_dict(state)
        for ours, theirs in zip(
            train(optimizer, loss_of(model), 6), train(resumed, loss_of(twin), 6), strict=True
        ):
            assert ours == theirs
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p, q)
        assert optimizer.extra == resumed.extra

    def test_loading_leaves_the_state_to_its_owner(self, kind, data):
        """Two optimizers that go on from one state do not write to each other's H."""
        model = mlp()
        optimizer, closure = kind(model), objective(model, *data)
        train(optimizer, closure, 3)
        twin = copy.deepcopy(model)
        other = kind(twin)
        other.load_state_dict(optimizer.state_dict())
        before = str(other.state_dict())
        train(optimizer, closure, 2)
        assert str(other.state_dict()) == before

    def test_another_size_is_refused_and_nothing_loaded(self, kind, data):
        model = mlp()
        other = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 3))
        optimizer, closure = kind(model), objective(model, *data)
        train(optimizer, closure, 3)
        small = kind(other)
        small_closure = objective(other, *data)
        train(small, small_closure, 2)
        before = str(small.state_dict())
        with pytest.raises(ConfigurationError, match=r"59 parameters, this \w+ has 23"):
            small.load_state_dict(optimizer.state_dict())
        assert str(small.state_dict()) == before
        assert small.step(small_closure).accepted

    def test_takes_the_models_dtype(self, kind, data):
        model = mlp()
        optimizer = kind(model)
        train(optimizer, objective(model, *data), 3)
        single = copy.deepcopy(model).float()
        other = kind(single)
        other.load_state_dict(optimizer.state_dict())
        x, y = data
        reports = train(other, objective(single, x.float(), y), 3)
        assert reports[0].accepted
        assert reports[-1].loss_after < reports[0].loss

    @pytest.mark.parametrize("way", ["deepcopy", "pickle"])
    def test_copies_go_on_alike(self, kind, data, way):
        model = mlp()
        optimizer = kind(model)
        train(optimizer, objective(model, *data), 4)
        if way == "deepcopy":
            twin, copied = copy.deepcopy((model, optimizer))
        else:
            twin, copied = pickle.loads(pickle.dumps((model, optimizer)))
        train(copied, objective(twin, *data), 3)
        assert not torch.equal(snapshot(model), snapshot(twin))
        train(optimizer, objective(model, *data), 3)
        assert torch.equal(snapshot(model), snapshot(twin))


class TestParameters:
    def test_a_group_may_be_added_midway(self, kind, data):
        model = mlp()
        layers = [m for m in model if isinstance(m, nn.Linear)]
        optimizer, closure = kind(layers[-1].parameters()), objective(model, *data)
        train(optimizer, closure, 3)
        optimizer.add_param_group({"params": list(layers[0].parameters())})
        before = snapshot(layers[0])
        reports = train(optimizer, closure, 5)
        assert all(report.accepted for report in reports)
        assert reports[-1].loss_after < reports[0].loss
        assert not torch.equal(snapshot(layers[0]), before)

    def test_of_two_dtypes(self, kind, data):
        """bfloat16 and float32 side by side: each moves in its own, gradients in float32."""
        x, y = data[0].float(), data[1]
        first, last = nn.Linear(3, 4).bfloat16(), nn.Linear(4, 3).float()

        def closure():
            return F.cross_entropy(last(torch.tanh(first(x.bfloat16()).float())), y)

        before = closure().item()
        optimizer = kind([*first.parameters(), *last.parameters()])
        train(optimizer, closure, 10)
        assert closure().item() < before
        assert {p.dtype for p in first.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in last.parameters()} == {torch.float32}
