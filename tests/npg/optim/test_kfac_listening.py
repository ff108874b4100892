"""What K-FAC hears, and what it must not: its own passes, torch.func, layers that take turns."""

import copy
import io
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from npg import ranks
from npg.curvature.kronecker import KroneckerFisher
from npg.curvature.kronecker.blocks import Call
from npg.optim import KFAC
from npg.optim.kfac_closure import ClosureStep
from npg.steps import LevenbergMarquardt
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.oracles import TIGHT, mlp


class Residual(nn.Module):
    """No chain: the quadratic model's products are passes over the graph."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        h = self.first(x).tanh()
        return self.last(h + self.drop(self.second(h)).tanh())


def data(n=12):
    return torch.randn(n, 4), torch.randint(3, (n,))


def test_the_steps_own_passes_are_not_heard():
    """With a decay of 0 the empirical moment is that of one batch: mean δ δᵀ, δ = 1_y − p."""
    model, (x, y) = Residual(), data()
    model.drop.p = 0.0
    optimizer = KFAC(
        model, likelihood="categorical", fisher="empirical", statistics_interval=1,
        statistics_decay=0.0,
    )  # fmt: skip
    for _ in range(3):
        p = model(x).detach().softmax(1)
        signals = F.one_hot(y, 3) - p
        optimizer.fisher.clear()
        optimizer.step(objective(model, x, y))
        assert not optimizer.fisher._calls
        moment = optimizer.fisher.blocks[2].moments[1]
        torch.testing.assert_close(moment, signals.T @ signals / len(x), **TIGHT)


def test_empirical_closures_resume_bit_for_bit():
    model, (x, y) = Residual(), data()
    options = {"likelihood": "categorical", "fisher": "empirical", "statistics_interval": 3}
    optimizer = KFAC(model, **options)
    for _ in range(5):
        optimizer.step(objective(model, x, y))
    twin = Residual()
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()), file)
    other = KFAC(twin, **options)
    file.seek(0)
    weights, state, noise = torch.load(file, weights_only=True)
    for _ in range(8):
        optimizer.step(objective(model, x, y))
    twin.load_state_dict(weights)
    other.load_state_dict(state)
    torch.set_rng_state(noise)
    for _ in range(8):
        other.step(objective(twin, x, y))
    assert torch.equal(snapshot(model), snapshot(twin))


def test_per_sample_gradients_of_a_model_that_is_listened_to():
    """Nothing of torch.func's tensors is kept; the next step is as if it had not been."""
    model, (x, y) = mlp(), (torch.randn(9, 3), torch.randint(3, (9,)))
    twin = copy.deepcopy(model)
    for kind in ("sampled", "exact", "empirical"):
        optimizer = KFAC(model, likelihood="categorical", fisher=kind)
        other = KFAC(twin, likelihood="categorical", fisher=kind)
        weights = {name: p.detach() for name, p in model.named_parameters()}

        def loss(w, a, b):
            return F.cross_entropy(torch.func.functional_call(model, w, (a,)), b)

        torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, x, y)
        torch.func.jacrev(lambda w: torch.func.functional_call(model, w, (x,)))(weights)
        for net, each in ((model, optimizer), (twin, other)):
            each.zero_grad()
            F.cross_entropy(net(x), y).backward()
            each.step()
        assert torch.equal(snapshot(model), snapshot(twin))


def test_heads_that_take_turns_both_get_statistics():
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 5), nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3)])
    model = nn.ModuleDict({"trunk": trunk, "heads": heads})
    x, y = data(20)

    class Switched(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts, self.turn = model, 0

        def forward(self, inputs):
            return self.parts["heads"][self.turn](self.parts["trunk"](inputs).tanh())

    net = Switched()
    optimizer = KFAC(net, likelihood="categorical", statistics_interval=2)
    heard = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(12):
            net.turn = step % 2
            heard.append(optimizer.fisher.capture.active)
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    assert all(block.updates > 0 for block in optimizer.fisher.blocks)
    assert heard[6:] == [True, False] * 3  # once they are known, only where it is due


def test_a_step_that_was_to_climb_raises_the_damping():
    """A fixed length beyond the model's minimum: the loss rises as predicted, and λ with it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)
    )
    x, y = torch.randn(256, 8), torch.randint(3, (256,))
    optimizer = KFAC(
        model, likelihood="categorical", momentum=0.0, kl_clip=1.0,
        damping=LevenbergMarquardt(1e-3),
    )  # fmt: skip
    reports = [optimizer.step(objective(model, x, y)) for _ in range(60)]
    for report, following in pairwise(reports):
        if not report.accepted:
            assert following.damping > report.damping
    assert float(reports[-1]) < 0.85 * float(reports[0])
    assert sum(report.accepted for report in reports) > 15


def test_ranks_share_the_samples_of_the_quadratic_model_out(monkeypatch):
    optimizer = KFAC(mlp(), likelihood="categorical", quadratic_samples=10)
    assert ClosureStep(optimizer)._samples() == 10
    optimizer.distributed = True
    monkeypatch.setattr(ranks, "count", lambda: 4)
    assert ClosureStep(optimizer)._samples() == 3
    optimizer.quadratic_samples = None
    assert ClosureStep(optimizer)._samples() is None


@pytest.mark.parametrize("broken", [False, True])
def test_passes_by_hand_are_measured_as_those_that_are_heard(broken):
    """The same labels, the same moments; what is not a number shows in both."""
    layer, x = nn.Linear(3, 4), torch.randn(6, 3)
    if broken:
        x[2, 1] = torch.nan
    moments = []
    for by_hand in (True, False):
        generator = torch.Generator().manual_seed(0)
        fisher = KroneckerFisher(layer, generator=generator)
        output = layer(x)
        if by_hand:
            fisher.clear()
            fisher.observe_by_hand(
                Categorical(logits=output.detach(), validate_args=False),
                lambda scores: [Call(layer, x, gradients=list(scores))],
            )
        else:
            fisher.observe(Categorical(logits=output, validate_args=False))
        assert bool(fisher.finite()) is not broken
        fisher.update(0.9)
        moments.append(fisher.blocks[0].moments)
    torch.testing.assert_close(*moments, equal_nan=True, **TIGHT)
