"""K-FAC without reading from the device: on torch's meta device, under fake tensors, on a GPU."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.nn import functional as F

from npg.optim import KFAC
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.oracles import mlp

OPTIONS = {
    "kfac": {},
    "ekfac": {"eigenbasis": True},
    "exact": {"fisher": "exact"},
    "empirical": {"fisher": "empirical"},
    "no clip": {"kl_clip": float("inf")},
    "rates and decays": {"weight_decay": 0.1, "decoupled_weight_decay": True, "groups": True},
    "L2": {"weight_decay": 0.1},
    "narrow": {"inverse_dtype": torch.bfloat16},
    "chain": {"inverse": "block-tridiagonal"},
}


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS.keys())
def options(request):
    return dict(request.param)


def make(model, options, **more):
    options = dict(options)
    if options.pop("groups", False):
        more["parameters"] = [
            {"params": list(model[0].parameters()), "lr": 0.1},
            {"params": [p for layer in model[1:] for p in layer.parameters()]},
        ]
    return KFAC(model, likelihood="categorical", **options, **more)


def step(optimizer, model, x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


class Convolutional(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv1d(1, 2, 2), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 3)
        )


class TestMeta:
    def test_steps(self, options):
        """Nothing can be read from this device; the refreshing steps read nothing either."""
        if options.get("inverse"):
            pytest.skip("the chain's factorisation looks at its result")
        model = mlp().to("meta")
        optimizer = make(model, options, statistics_interval=2, inverse_interval=3)
        x = torch.randn(9, 3, device="meta")
        y = torch.zeros(9, dtype=torch.long, device="meta")
        versions = [p._version for p in model.parameters()]
        for _ in range(5):
            step(optimizer, model, x, y)
        assert all(p._version > v for p, v in zip(model.parameters(), versions, strict=True))
        assert optimizer.extra["steps"] == 5

    def test_layers_of_other_kinds(self):
        model = Convolutional().to("meta")
        optimizer = KFAC(model, likelihood="categorical")
        x = torch.randn(9, 1, 3, device="meta")
        for _ in range(3):
            step(optimizer, model, x, torch.zeros(9, dtype=torch.long, device="meta"))
        assert optimizer.extra["steps"] == 3


class TestFakeTensors:
    def test_steps_between_refreshes(self, options):
        """A copy of a trained optimizer, on tensors that have no values."""
        model = mlp()
        optimizer = make(model, options, statistics_interval=100, inverse_interval=100)
        x, y = torch.randn(9, 3), torch.randint(3, (9,))
        step(optimizer, model, x, y)
        mode = FakeTensorMode()
        with FakeCopyMode(mode):
            drawn = {id(optimizer.generator): optimizer.generator}  # its state has to be bytes
            twin, other, fake_x, fake_y = copy.deepcopy((model, optimizer, x, y), drawn)
        assert all(isinstance(p, FakeTensor) for p in twin.parameters())
        with mode:
            for _ in range(3):
                step(other, twin, fake_x, fake_y)
        assert other.extra["steps"] == 4
        assert all(isinstance(other.state[p]["velocity"], FakeTensor) for p in twin.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestCuda:
    def test_steps_are_those_on_the_cpu(self, options):
        model, x, y = mlp(), torch.randn(9, 3), torch.randint(3, (9,))
        twin = copy.deepcopy(model).cuda()
        options["fisher"] = "exact"  # labels are drawn by each device's own generator
        optimizer, other = make(model, options), make(twin, options)
        for _ in range(5):
            step(optimizer, model, x, y)
            step(other, twin, x.cuda(), y.cuda())
        torch.testing.assert_close(snapshot(twin).cpu(), snapshot(model), rtol=1e-8, atol=1e-10)

    def test_nothing_waits_between_refreshes(self, options):
        model = mlp().cuda()
        x, y = torch.randn(9, 3, device="cuda"), torch.randint(3, (9,), device="cuda")
        optimizer = make(model, options, statistics_interval=100, inverse_interval=100)
        step(optimizer, model, x, y)
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(optimizer, model, x, y)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_a_state_of_the_cpu(self, options):
        model, x, y = mlp(), torch.randn(9, 3), torch.randint(3, (9,))
        options["fisher"] = "exact"
        optimizer = make(model, options)
        step(optimizer, model, x, y)
        twin = copy.deepcopy(model).cuda()
        other = make(twin, options)
        state = optimizer.state_dict()
        state["kfac"]["generator"] = other.generator.get_state()  # of another kind
        other.load_state_dict(state)
        for _ in range(3):
            step(optimizer, model, x, y)
            step(other, twin, x.cuda(), y.cuda())
        torch.testing.assert_close(snapshot(twin).cpu(), snapshot(model), rtol=1e-8, atol=1e-10)

    def test_closures(self):
        model, x, y = mlp(), torch.randn(9, 3), torch.randint(3, (9,))
        twin = copy.deepcopy(model).cuda()
        optimizer, other = (make(m, {"fisher": "exact"}) for m in (model, twin))
        for _ in range(6):
            optimizer.step(objective(model, x, y))
            other.step(objective(twin, x.cuda(), y.cuda()))
        torch.testing.assert_close(snapshot(twin).cpu(), snapshot(model), rtol=1e-6, atol=1e-8)
