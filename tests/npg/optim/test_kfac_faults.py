"""What K-FAC does where something is missing, wrong or not finite."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from npg.errors import ConfigurationError, NumericalError
from npg.optim import EKFAC, KFAC
from npg.steps import LevenbergMarquardt
from tests.npg.optim.helpers import snapshot
from tests.npg.oracles import TIGHT, flat, mlp


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
            ({"statistics_interval": 0}, "at least 1"),
            ({"inverse_interval": 0}, "at least 1"),
            ({"burn_in": -1}, "at least 0"),
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
        optimizer = KFAC(model, likelihood="categorical")
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

    def test_layers_of_a_known_kind(self, data):
        """Parameters outside layers are blocks of their own."""

        class Bare(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(0.1 * torch.randn(3, 3))
                self.shift = nn.Parameter(torch.zeros(3))

            def forward(self, x):
                return x @ self.weight + self.shift

        model = Bare()
        optimizer = KFAC(model, likelihood="categorical", fisher="empirical", damping=1.0)
        before = float(F.cross_entropy(model(data[0]), data[1]).detach())
        try:
            train(optimizer, model, data, 30)
        except ConfigurationError as error:
            assert "no statistics were captured" in str(error)
        else:
            assert float(F.cross_entropy(model(data[0]), data[1]).detach()) < before

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
        """The prediction is either that which the loss saw, or refused: never another, unsaid."""
        x, y = data
        mask = torch.tensor([False, False, True])

        def change(logits):
            return logits.mul_(2.0) if how == "scaled" else logits.masked_fill_(mask, -1e9)

        model = mlp()
        twin = copy.deepcopy(model)
        labels = y.clamp(max=1)
        optimizer = KFAC(model, likelihood="categorical", fisher="exact", kl_clip=math.inf)
        F.cross_entropy(change(model(x)), labels).backward()
        told = KFAC(twin, fisher="exact", kl_clip=math.inf)
        logits = twin.forward(x) * 2.0 if how == "scaled" else None
        if logits is None:
            logits = twin.forward(x).masked_fill(mask, -1e9)
        told.observe(Categorical(logits=logits))
        F.cross_entropy(logits, labels).backward()
        told.step()
        try:
            optimizer.step()
        except ConfigurationError as error:
            assert "unchanged in place" in str(error)
        else:
            found = snapshot(model)
            plain = copy.deepcopy(twin)
            assert torch.isfinite(found).all()
            assert found.shape == snapshot(plain).shape

    @pytest.mark.parametrize("likelihood", ["categorical", "normal", "bernoulli", "mse"])
    def test_that_are_scalars_per_sample(self, likelihood):
        """A value head [N, 1] or [N]: each family says what it can read."""
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizer = KFAC(model, likelihood=likelihood)
        start = snapshot(model)
        try:
            (model(torch.randn(5, 3)) - 1).square().mean().backward()
            optimizer.step()
        except ConfigurationError as error:
            assert likelihood == "categorical"
            assert "two classes" in str(error)
            assert torch.equal(snapshot(model), start)


class TestNotFinite:
    @pytest.mark.parametrize("optimizer", [KFAC, EKFAC])
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("everywhere", [False, True])
    @pytest.mark.parametrize("clip", [0.01, math.inf])
    def test_gradients_move_nothing(self, optimizer, bad, everywhere, clip, data):
        model = mlp()
        made = optimizer(
            model, likelihood="categorical", kl_clip=clip, weight_decay=0.1,
            decoupled_weight_decay=True,
        )  # fmt: skip
        train(made, model, data, 3)
        start = snapshot(model)
        velocity = flat([made.state[p]["velocity"] for p in model.parameters()]).clone()
        F.cross_entropy(model(data[0]), data[1]).backward()
        if everywhere:
            for p in model.parameters():
                p.grad.fill_(bad)
        else:
            model[2].weight.grad[0, 0] = bad
        made.step()
        assert torch.equal(snapshot(model), start)
        after = flat([made.state[p]["velocity"] for p in model.parameters()])
        assert torch.equal(after, velocity)
        assert made.skipped == 1
        assert made.state_dict()["npg"]["skipped"] == 1
        train(made, model, data)
        assert made.skipped == 1
        assert torch.isfinite(snapshot(model)).all()

    @pytest.mark.parametrize("optimizer", [KFAC, EKFAC])
    def test_statistics_never_enter(self, optimizer, data):
        model = mlp()
        made = optimizer(model, likelihood="categorical", fisher="exact")
        train(made, model, data, 2)
        before = repr((made.fisher.state(), made.preconditioner.state()))
        bad = data[0].clone()
        bad[3, 1] = math.inf
        made.zero_grad()
        F.cross_entropy(model(bad), data[1]).backward()
        made.step()
        assert made.extra["skipped_statistics"] == 1
        assert repr((made.fisher.state(), made.preconditioner.state())) == before

    @pytest.mark.parametrize("optimizer", [KFAC, EKFAC])
    def test_statistics_at_first(self, optimizer, data):
        """Without any curvature there is no step, least of all along the bare gradient."""
        model = mlp()
        made = optimizer(model, likelihood="categorical", fisher="exact")
        bad = data[0].clone()
        bad[3, 1] = math.inf
        start = snapshot(model)
        F.cross_entropy(model(bad), data[1]).backward()
        for p in model.parameters():  # a gradient that is finite, say by clipping
            p.grad = torch.ones_like(p)
        made.step()
        assert torch.equal(snapshot(model), start)
        assert (made.skipped, made.extra["skipped_statistics"]) == (1, 1)
        train(made, model, data)
        assert not torch.equal(snapshot(model), start)


class TestNumerics:
    @pytest.mark.parametrize("optimizer", [KFAC, EKFAC])
    @pytest.mark.parametrize("x", [torch.zeros(12, 3), torch.ones(12, 3)])
    def test_singular_factors(self, optimizer, x, data):
        """Inputs that are zero, or of rank one, leave the damping."""
        model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
        made = optimizer(model, likelihood="categorical")
        train(made, model, (x, data[1]), 5)
        assert torch.isfinite(snapshot(model)).all()
        assert made.skipped == 0

    def test_cholesky_that_fails(self, data, monkeypatch):
        model = mlp()
        optimizer = KFAC(model, likelihood="categorical", inverse_interval=1)
        train(optimizer, model, data)

        def fails(matrix, **_):
            return torch.zeros_like(matrix), torch.ones(matrix.shape[:-2], dtype=torch.int32)

        monkeypatch.setattr(torch.linalg, "cholesky_ex", fails)
        start = snapshot(model)
        for count in (1, 2):
            train(optimizer, model, data)
            assert optimizer.preconditioner.failures == [count] * 3
        assert optimizer.preconditioner.kept == 6
        moved = snapshot(model)
        assert not torch.equal(moved, start), "the old inverse is in use"
        for _ in range(2):
            with pytest.raises(NumericalError, match=r"raise damping="):
                train(optimizer, model, data)
            assert torch.equal(snapshot(model), moved)
        monkeypatch.undo()
        train(optimizer, model, data)
        assert optimizer.preconditioner.failures == [0] * 3
        assert not torch.equal(snapshot(model), moved)

    @pytest.mark.parametrize("optimizer", [KFAC, EKFAC])
    def test_a_first_inverse_that_fails(self, optimizer, data, monkeypatch):
        """There is none to go on with; whoever catches that must not step without one."""
        model = mlp()
        made = optimizer(model, likelihood="categorical")
        start = snapshot(model)

        def nothing(matrix, **_):
            return torch.zeros_like(matrix), torch.ones(matrix.shape[:-2], dtype=torch.int32)

        def raises(*_):
            raise torch.linalg.LinAlgError("did not converge")

        monkeypatch.setattr(torch.linalg, "cholesky_ex", nothing)
        monkeypatch.setattr(torch.linalg, "eigh", raises)
        for _ in range(2):
            with pytest.raises(NumericalError):
                train(made, model, data)
            assert torch.equal(snapshot(model), start)
            assert not made.preconditioner.ready
        monkeypatch.undo()
        train(made, model, data)
        assert made.preconditioner.ready
        assert not torch.equal(snapshot(model), start)

    @pytest.mark.parametrize("optimizer", [KFAC, EKFAC])
    def test_half_precision_parameters(self, optimizer, data):
        model = mlp().bfloat16()
        made = optimizer(model, likelihood="categorical", fisher="exact")
        x, y = data[0].bfloat16(), data[1]
        try:
            train(made, model, (x, y), 3)
        except (RuntimeError, NotImplementedError) as error:
            pytest.skip(f"the factors do not support it: {error}")
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert all(torch.isfinite(p).all() for p in model.parameters())

    def test_large_damping_is_gradient_descent(self, data):
        model = mlp()
        start = snapshot(model)
        optimizer = KFAC(
            model, likelihood="categorical", damping=1e10, lr=1e8, momentum=0.0, kl_clip=math.inf
        )
        loss = F.cross_entropy(model(data[0]), data[1])
        gradient = flat(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True))
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(snapshot(model) - start, -0.01 * gradient, rtol=1e-3, atol=1e-8)
        assert TIGHT["rtol"] < 1e-3
