"""The second evaluation of K-FAC's closure: same conditions, rejection, failure."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import NumericalError
from npg.optim import KFAC
from npg.steps import LevenbergMarquardt
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.oracles import mlp

VARIANTS = {
    "exact": {},
    "fixed momentum": {"momentum": 0.9},
    "decoupled decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "L2": {"weight_decay": 0.1},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def variant(request):
    return request.param


@pytest.fixture
def data():
    return torch.randn(12, 3), torch.randint(3, (12,))


def make(model, **options):
    rule = LevenbergMarquardt(1.0, factor=2.0)
    return KFAC(model, likelihood="categorical", **{"damping": rule, **options})


def noisy():
    return nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)
    )


def worse(forward, second):
    """A closure whose second evaluation returns something else."""
    calls = []

    def closure():
        loss, logits = forward()
        calls.append(1)
        return (loss if len(calls) == 1 else second(loss)), logits

    return closure


class TestConditions:
    def test_nothing_that_moved_is_no_change(self, data):
        """With lr 0 the second evaluation must be the first, dropout and all."""
        model = noisy()
        optimizer = make(model, lr=0.0)
        for _ in range(3):
            report = optimizer.step(objective(model, *data))
            assert report.loss_after == report.loss
            assert report.accepted

    @pytest.mark.parametrize("explicit", [False, True])
    def test_attention_is_computed_in_the_same_way(self, explicit, data):
        """Also where the first evaluation takes statistics, and with dropout inside the kernel."""

        fused = []

        class Attentive(nn.Module):
            def __init__(self):
                super().__init__()
                self.inside = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)
                self.project, self.head = nn.Linear(3, 8), nn.Linear(4, 3)

            def forward(self, x):
                fused.append(torch.backends.cuda.flash_sdp_enabled())
                hidden = self.project(x).unflatten(1, (2, 4))
                if explicit:
                    return self.head(self.inside(hidden, hidden, hidden)[0].mean(1))
                kernel = F.scaled_dot_product_attention
                return self.head(kernel(hidden, hidden, hidden, dropout_p=0.3).mean(1))

        model = Attentive()
        if not explicit:
            model.inside.requires_grad_(False)
        optimizer = make(model, lr=0.0)
        for _ in range(3):
            report = optimizer.step(objective(model, *data))
            assert report.loss_after == pytest.approx(report.loss, rel=1e-12)
        assert fused == [False] * 6

    def test_running_statistics_move_once_a_step(self, data):
        model = noisy()
        twin = copy.deepcopy(model)
        optimizer = make(model)
        for steps in (1, 2, 3):
            twin.load_state_dict(model.state_dict())
            optimizer.step(objective(model, *data))
            twin(data[0])
            assert int(model[1].num_batches_tracked) == steps
            torch.testing.assert_close(model[1].running_mean, twin[1].running_mean)
            torch.testing.assert_close(model[1].running_var, twin[1].running_var)

    def test_random_numbers_are_drawn_as_often_as_without(self, data):
        drawn = []
        for damping in (0.1, LevenbergMarquardt(0.1)):
            torch.manual_seed(0)
            model = noisy()
            optimizer = make(model, damping=damping)
            optimizer.step(objective(model, *data))
            drawn.append(torch.randn(3))
        assert torch.equal(*drawn)

    def test_interval_saves_evaluations(self, data):
        model = mlp()
        calls = []
        optimizer = make(model, damping=LevenbergMarquardt(1.0, interval=3))

        def closure():
            calls.append(int(optimizer.extra["steps"]))
            return objective(model, *data)()

        reports = [optimizer.step(closure) for _ in range(6)]
        assert calls == [0, 1, 2, 2, 3, 4, 5, 5]
        checked = [not math.isnan(report.reduction_ratio) for report in reports]
        assert checked == [False, False, True, False, False, True]

    def test_the_default_checks_each_fifth_step(self, data):
        """λ from 1, at most 0.95⁵ at a time: (20/19)⁵ is Martens and Grosse's."""
        model = mlp()
        optimizer = KFAC(model, likelihood="categorical")
        used = [optimizer.step(objective(model, *data)).damping for _ in range(6)]
        assert used[:5] == [1.0] * 5
        assert used[5] in (1.0, pytest.approx(0.95**5), pytest.approx(0.95**-5))


class TestRejection:
    @pytest.mark.parametrize("value", [lambda loss: loss + 10, lambda loss: loss * math.nan])
    def test_restores_bit_for_bit(self, variant, value, data):
        model = mlp()
        optimizer = make(model, **variant)
        for _ in range(3):
            assert optimizer.step(objective(model, *data)).accepted
        start, damping = snapshot(model), optimizer.schedule.damping
        report = optimizer.step(worse(objective(model, *data), value))
        assert torch.equal(snapshot(model), start)
        assert not report.accepted
        assert report.loss_after == report.loss
        assert report.fraction == 0
        assert optimizer.extra["rejected"] == 1
        assert optimizer.schedule.damping == 2 * damping
        assert all("velocity" not in optimizer.state[p] for p in model.parameters())
        assert optimizer.step(objective(model, *data)).accepted

    def test_forgets_the_momentum(self, data):
        """What follows is what an optimizer without velocity would do."""
        model = mlp()
        optimizer = make(model, damping=LevenbergMarquardt(1.0, factor=1 + 1e-12))
        for _ in range(3):
            optimizer.step(objective(model, *data))
        optimizer.step(worse(objective(model, *data), lambda loss: loss + 10))
        twin = copy.deepcopy(model)
        other = make(twin)
        state = optimizer.state_dict()
        state["state"] = {}
        other.load_state_dict(state)
        optimizer.step(objective(model, *data))
        other.step(objective(twin, *data))
        assert torch.equal(snapshot(model), snapshot(twin))

    @pytest.mark.parametrize(("margin", "accepted"), [(1e-9, False), (-1e-9, True)])
    def test_is_decided_by_the_objective_with_its_l2_term(self, margin, accepted, data):
        model = mlp()
        optimizer = make(model, weight_decay=1.0)
        start = snapshot(model)

        def level(loss):
            """As much below the first loss as the L2 term has grown, and a margin."""
            moved = snapshot(model)
            return first - float(moved @ moved - start @ start) / 2 + margin + 0 * loss

        first = float(objective(model, *data)()[0].detach())
        report = optimizer.step(worse(objective(model, *data), level))
        assert report.accepted is accepted
        assert torch.equal(snapshot(model), start) is not accepted

    def test_a_second_evaluation_that_raises(self, variant, data):
        model = noisy()
        optimizer = make(model, **variant)
        optimizer.step(objective(model, *data))
        start = snapshot(model)
        calls = []

        def closure():
            calls.append(1)
            if len(calls) == 2:
                raise KeyError("second")
            return objective(model, *data)()

        with pytest.raises(KeyError, match="second"):
            optimizer.step(closure)
        assert torch.equal(snapshot(model), start)
        assert math.isfinite(optimizer.step(objective(model, *data)).loss)


class TestObstacles:
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_loss_that_is_not_finite(self, variant, bad, data):
        model = mlp()
        optimizer = make(model, **variant)
        optimizer.step(objective(model, *data))
        start = snapshot(model)
        velocity = [optimizer.state[p]["velocity"].clone() for p in model.parameters()]
        moments = copy.deepcopy(optimizer.fisher.state())

        def closure():
            logits = model(data[0])
            return F.cross_entropy(logits, data[1]) * bad, logits

        report = optimizer.step(closure)
        assert report.reason == "loss or gradient is not finite"
        assert not report.accepted
        assert optimizer.skipped == 1
        assert torch.equal(snapshot(model), start)
        for p, v in zip(model.parameters(), velocity, strict=True):
            assert torch.equal(optimizer.state[p]["velocity"], v)
        assert repr(moments) == repr(optimizer.fisher.state())

    def test_a_gradient_of_zero(self, variant, data):
        model = mlp()
        optimizer = make(model, **{**variant, "weight_decay": 0.0})
        start = snapshot(model)

        def closure():
            logits = model(data[0])
            return 0 * logits.sum(), logits

        assert optimizer.step(closure).reason == "zero gradient"
        assert torch.equal(snapshot(model), start)

    def test_burn_in_gathers_only(self, data):
        model = mlp()
        optimizer = make(model, burn_in=2)
        start = snapshot(model)
        reasons = [optimizer.step(objective(model, *data)).reason for _ in range(2)]
        assert reasons == ["burn-in"] * 2
        assert torch.equal(snapshot(model), start)
        assert [block.updates for block in optimizer.fisher.blocks] == [2] * 3
        assert optimizer.step(objective(model, *data)).accepted

    def test_curvature_that_cannot_be_inverted(self, data, monkeypatch):
        model = mlp()
        optimizer = make(model, inverse_interval=1)
        optimizer.step(objective(model, *data))
        start = snapshot(model)
        for block in optimizer.fisher.blocks:
            monkeypatch.setattr(block, "moments", [m * math.nan for m in block.moments])
        for _ in range(2):
            optimizer.step(objective(model, *data))
        moved = snapshot(model)
        assert not torch.equal(moved, start), "the old inverse is in use"
        with pytest.raises(NumericalError, match="3 times in a row"):
            optimizer.step(objective(model, *data))
        assert torch.equal(snapshot(model), moved)
