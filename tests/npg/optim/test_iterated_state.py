"""What BFGS, DFP, SR1 and L-BFGS promise alike: iterations, states, copies and parameters."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import BFGS
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.optim.iterated_kinds import KINDS, Kind, train
from tests.npg.oracles import mlp


@pytest.fixture(params=KINDS)
def kind(request):
    return Kind(request.param)


@pytest.fixture
def data():
    x = torch.randn(40, 3)
    return x, (x[:, 0] > 0).long() + (x[:, 1] * x[:, 2] > 0)


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
