"""What K-FAC does where something is missing, wrong or not finite."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import KFAC
from npg.steps import LevenbergMarquardt
from tests.npg.optim.helpers import snapshot
from tests.npg.oracles import TIGHT, mlp


@pytest.fixture
def data():
    return torch.randn(12, 3), torch.randint(3, (12,))


def train(optimizer, model, data, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr": -0.1}, "lr must not be negative"),
            ({"lr": math.nan}, "lr must not be negative"),
            ({"lr": math.inf}, "lr must not be negative"),
            ({"weight_decay": -1.0}, "weight_decay must not be negative"),
            ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
            ({"momentum": "exact"}, "momentum must be"),
            ({"damping": 0.0}, r"damping must be positive \(0.01 is usual\)"),
            ({"damping": math.nan}, "damping must be positive"),
            ({"kl_clip": 0.0}, r"kl_clip must be positive.*math\.inf never clips"),
            ({"fisher": "true"}, "fisher must be one of exact, sampled, empirical, got 'true'"),
            ({"inverse": "tridiagonal"}, "inverse must be one of"),
            ({"sharing": "both"}, "sharing must be one of"),
            ({"reduction": "none"}, "reduction must be one of"),
            ({"eigenbasis": True, "inverse": "block-tridiagonal"}, "no common eigenbasis"),
            ({"inverse_dtype": torch.float16}, "torch.bfloat16, or None.*got torch.float16"),
            ({"inverse_dtype": torch.bfloat16, "eigenbasis": True}, "K-FAC's plain inverse"),
            ({"statistics_interval": 0}, "at least 1"),
            ({"inverse_interval": 0}, "at least 1"),
            ({"burn_in": -1}, "at least 0"),
            ({"quadratic_samples": 0}, "quadratic_samples must be at least 1"),
            ({"statistics_decay": 1.0}, r"in \[0, 1\)"),
        ],
    )
    def test_that_cannot_work(self, options, message):
        with pytest.raises(ConfigurationError, match=message):
            KFAC(mlp(), likelihood="categorical", **options)

    @pytest.mark.parametrize(
        ("name", "value"), [("lr", -1.0), ("lr", math.nan), ("weight_decay", -1.0)]
    )
    def test_of_any_group_changed_later(self, name, value, data):
        model = mlp()
        groups = [{"params": list(layer.parameters())} for layer in (model[0], model[2])]
        optimizer = KFAC(model, likelihood="categorical", parameters=groups)
        train(optimizer, model, data)
        optimizer.param_groups[1][name] = value
        with pytest.raises(ConfigurationError, match=f"{name} must not be negative"):
            train(optimizer, model, data)

    def test_of_groups_at_first(self):
        model = mlp()
        with pytest.raises(ConfigurationError, match="lr must not be negative"):
            KFAC(model, parameters=[{"params": list(model.parameters()), "lr": -1.0}])

    def test_parameters_alone_are_no_model(self):
        with pytest.raises(ConfigurationError, match="K-FAC listens to its layers"):
            KFAC(mlp().parameters())

    def test_two_optimizers_may_be_given_one_rule(self, data):
        rule = LevenbergMarquardt(0.5, factor=2.0)
        model = mlp()
        first = KFAC(model, likelihood="categorical", damping=rule)
        second = KFAC(mlp(), likelihood="categorical", damping=rule)
        first.step(lambda: (F.cross_entropy(logits := model(data[0]), data[1]), logits))
        assert first.schedule.damping != 0.5
        assert second.schedule.damping == rule.damping == 0.5


class TestMissing:
    def test_gradients(self, data):
        model = mlp()
        optimizer = KFAC(model, likelihood="categorical")
        with pytest.raises(ConfigurationError, match=r"call loss\.backward\(\) first"):
            optimizer.step()
        model(data[0])
        with pytest.raises(ConfigurationError, match=r"call loss\.backward\(\) first"):
            optimizer.step()
        train(optimizer, model, data)

    def test_a_likelihood(self, data):
        """The message has both remedies, and they help."""
        model = mlp()
        optimizer = KFAC(model)
        start = snapshot(model)
        with pytest.raises(ConfigurationError, match=r'likelihood=.*observe.*fisher="empirical"'):
            train(optimizer, model, data)
        assert torch.equal(snapshot(model), start)
        train(KFAC(model, likelihood="categorical"), model, data)
        train(KFAC(model, fisher="empirical"), model, data)

    def test_training_mode(self, data):
        model = mlp().eval()
        optimizer = KFAC(model, likelihood="categorical", statistics_interval=2)
        with pytest.raises(ConfigurationError, match="training mode"):
            train(optimizer, model, data)
        model.train()
        train(optimizer, model, data, 2)
        model.eval()  # later on the old statistics serve
        before = [block.updates for block in optimizer.fisher.blocks]
        uncaptured = optimizer.extra["uncaptured"]
        train(optimizer, model, data)
        assert [block.updates for block in optimizer.fisher.blocks] == before
        assert optimizer.extra["uncaptured"] == uncaptured + 1

    @pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
    def test_layers_of_a_known_kind(self, kind, data):
        """Parameters outside layers are blocks of their own, which the empirical kind lacks."""

        class Bare(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(0.1 * torch.randn(3, 3))
                self.shift = nn.Parameter(torch.zeros(3))

            def forward(self, x):
                return x @ self.weight + self.shift

        model = Bare()
        optimizer = KFAC(model, likelihood="categorical", fisher=kind, damping=1.0)
        before = float(F.cross_entropy(model(data[0]), data[1]).detach())
        if kind == "empirical":
            with pytest.raises(ConfigurationError, match="a layer of a known kind"):
                train(optimizer, model, data)
            return
        train(optimizer, model, data, 30)
        assert float(F.cross_entropy(model(data[0]), data[1]).detach()) < before

    def test_calls_of_a_layer_whose_weight_is_used(self, data):
        class Functional(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

            def forward(self, x):
                return self.head(torch.tanh(F.linear(x, self.body.weight, self.body.bias)))

        model = Functional()
        optimizer = KFAC(model, likelihood="categorical", inverse_interval=1)
        with pytest.warns(UserWarning, match=r"body\.weight, body\.bias have gradients and"):
            train(optimizer, model, data)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # once is enough
            train(optimizer, model, data)

    def test_sparse_gradients(self):
        model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 3))
        optimizer = KFAC(model, likelihood="categorical")
        with pytest.raises(ConfigurationError, match="sparse=False"):
            train(optimizer, model, (torch.tensor([1, 2]), torch.tensor([0, 1])))

    def test_a_layer_without_gradient_waits(self, data):
        model = mlp()
        optimizer = KFAC(model, likelihood="categorical")
        train(optimizer, model, data)
        start = snapshot(model)
        optimizer.zero_grad()
        F.cross_entropy(model(data[0]), data[1]).backward()
        model[2].weight.grad = None
        model[0].weight.grad = model[0].bias.grad = None
        optimizer.step()
        moved = snapshot(model) != start
        assert not moved[:16].any()  # layer 0
        assert not moved[16:36].any()  # the weight of layer 2
        assert moved[36:].all()


class TestOutputs:
    @pytest.mark.parametrize("how", ["scaled", "masked"])
    def test_changed_in_place(self, how, data):
        """The likelihood is of what the model returned, whatever becomes of it."""
        x, y = data[0], data[1].clamp(max=1)
        mask = torch.tensor([False, False, True])

        def change(logits):
            return logits.mul_(2.0) if how == "scaled" else logits.masked_fill_(mask, -1e9)

        model = mlp()
        twin = copy.deepcopy(model)
        optimizer = KFAC(model, likelihood="categorical", fisher="exact", kl_clip=math.inf)
        F.cross_entropy(change(model(x)), y).backward()
        optimizer.step()
        told = KFAC(twin, fisher="exact", kl_clip=math.inf)
        logits = twin(x)
        told.observe(Categorical(logits=logits))
        F.cross_entropy(change(logits.clone()), y).backward()
        told.step()
        torch.testing.assert_close(snapshot(model), snapshot(twin), **TIGHT)

    @pytest.mark.parametrize("likelihood", ["normal", "bernoulli", "mse"])
    def test_of_one_number_per_sample(self, likelihood):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizer = KFAC(model, likelihood=likelihood)
        start = snapshot(model)
        (model(torch.randn(5, 3)) - 1).square().mean().backward()
        optimizer.step()
        assert not torch.equal(snapshot(model), start)

    @pytest.mark.parametrize("closure", [False, True])
    def test_that_do_not_fit_the_likelihood(self, closure):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizer = KFAC(model, likelihood="categorical")
        start, x = snapshot(model), torch.randn(5, 3)

        def loss():
            output = model(x)
            return output.square().mean(), output

        with pytest.raises(ConfigurationError, match=r'two classes or more.*"bernoulli"'):
            optimizer.step(loss) if closure else loss()[0].backward()
        assert torch.equal(snapshot(model), start)
