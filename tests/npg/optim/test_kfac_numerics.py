"""K-FAC where numbers are not finite, or factors cannot be inverted."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import NumericalError
from npg.optim import EKFAC, KFAC
from tests.npg.optim.helpers import snapshot
from tests.npg.oracles import flat, mlp


@pytest.fixture
def data():
    return torch.randn(12, 3), torch.randint(3, (12,))


def train(optimizer, model, data, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()


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

    def test_a_model_of_two_precisions(self, data):
        """A step that is left out leaves both as they are."""
        model = mlp().float()
        model[0].double()
        model[0].register_forward_hook(lambda _, __, output: output.float())
        optimizer = KFAC(model, likelihood="categorical")
        train(optimizer, model, data)
        start = snapshot(model)
        F.cross_entropy(model(data[0]), data[1]).backward()
        model[2].weight.grad[0, 0] = math.nan
        optimizer.step()
        assert torch.equal(snapshot(model), start)
        assert optimizer.skipped == 1

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("clip", [0.01, math.inf])
    def test_products_of_finite_gradients(self, bad, clip, data, monkeypatch):
        """F̂⁻¹g may overflow where g does not: a step without its largest entries is none."""
        model = mlp()
        optimizer = KFAC(model, likelihood="categorical", kl_clip=clip)
        train(optimizer, model, data)
        start = snapshot(model)
        write = optimizer.preconditioner.write

        def overflows(gradients, out):
            write(gradients, out)
            out[model[2].bias][0] = bad

        monkeypatch.setattr(optimizer.preconditioner, "write", overflows)
        train(optimizer, model, data)
        assert torch.equal(snapshot(model), start)
        assert optimizer.skipped == 1

    @pytest.mark.parametrize("optimizer", [KFAC, EKFAC])
    def test_statistics_never_enter(self, optimizer, data):
        model = mlp()
        made = optimizer(model, likelihood="categorical", fisher="exact", statistics_interval=2)
        train(made, model, data, 2)
        before = repr((made.fisher.state(), made.preconditioner.state_dict()))
        bad = data[0].clone()
        bad[3, 1] = math.inf
        made.zero_grad()
        F.cross_entropy(model(bad), data[1]).backward()
        made.step()
        assert made.extra["skipped_statistics"] == 1
        assert repr((made.fisher.state(), made.preconditioner.state_dict())) == before

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
    @pytest.mark.parametrize("x", [torch.zeros(12, 3), torch.ones(12, 3)], ids=["zeros", "ones"])
    def test_singular_factors(self, optimizer, x, data):
        """Inputs that are zero, or of rank one, leave the damping."""
        model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
        made = optimizer(model, likelihood="categorical")
        train(made, model, (x.double(), data[1]), 5)
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
        made = optimizer(model, likelihood="categorical")
        x, y = data[0].bfloat16(), data[1]
        train(made, model, (x, y), 3)
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
