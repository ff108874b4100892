"""Where the optimizers that probe the Hessian get their products from, and what they let go of."""

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import AdaHessian, HessianOptimizer, SophiaH, train_step
from tests.npg.optim.helpers import snapshot
from tests.npg.oracles import mlp

KINDS = {
    "adahessian": lambda m, **o: AdaHessian(m, 0.1, **o),
    "sophia-h": lambda m, **o: SophiaH(m, 0.02, hessian_interval=o.pop("hessian_interval", 1), **o),
}


@pytest.fixture(params=KINDS)
def make(request):
    return KINDS[request.param]


@pytest.fixture
def data():
    return torch.randn(20, 3), torch.randint(3, (20,))


def by_closure(optimizer, model, x, y):
    return float(optimizer.step(lambda: F.cross_entropy(model(x), y)))


def by_pair(optimizer, model, x, y):
    def forward():
        logits = model(x)
        return F.cross_entropy(logits, y), logits

    return train_step(optimizer, forward)


def by_backward(optimizer, model, x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward(create_graph=True)
    optimizer.step()
    return float(loss.detach())


def by_torchs_closure(optimizer, model, x, y):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    return float(optimizer.step(closure))


WAYS = [by_closure, by_pair, by_backward, by_torchs_closure]


@pytest.mark.parametrize("interval", [1, 3])
def test_every_way_takes_the_same_steps(make, data, interval):
    ends, losses = [], []
    for way in WAYS:
        torch.manual_seed(0)
        model = mlp()
        optimizer = make(model, hessian_interval=interval)
        losses.append([way(optimizer, model, *data) for _ in range(7)])
        ends.append(snapshot(model))
        assert losses[-1][-1] < losses[-1][0]
    for end, loss in zip(ends[1:], losses[1:], strict=True):
        torch.testing.assert_close(end, ends[0], rtol=1e-12, atol=1e-14)
        assert loss == pytest.approx(losses[0], rel=1e-12)


@pytest.mark.filterwarnings("ignore:Using backward.*create_graph")
@pytest.mark.parametrize("way", WAYS)
def test_nothing_of_the_graph_outlives_a_step(make, data, way):
    model = mlp()
    optimizer = make(model)
    kept = weakref.WeakSet()

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            kept.add(self)

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        for _ in range(3):
            way(optimizer, model, *data)
            assert not kept
    assert all(p.grad is not None and not p.grad.requires_grad for p in model.parameters())


def test_a_graph_that_was_made_for_nothing_is_let_go(data):
    model = mlp()
    optimizer = SophiaH(model, hessian_interval=2)
    for _ in range(4):  # the second and the fourth do not probe
        F.cross_entropy(model(data[0]), data[1]).backward(create_graph=True)
        optimizer.step()
        assert not any(p.grad.requires_grad for p in model.parameters())
        optimizer.zero_grad()


def test_gradients_without_a_graph_are_refused_and_nothing_moves(make, data):
    model = mlp()
    optimizer = make(model)
    start = snapshot(model)
    F.cross_entropy(model(data[0]), data[1]).backward()
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"backward\(create_graph=True\)"):
            optimizer.step()
    assert torch.equal(snapshot(model), start)
    assert optimizer.needs_graph


def test_only_the_probing_steps_need_one(data):
    model = mlp()
    optimizer = SophiaH(model, hessian_interval=3)
    needed = []
    for _ in range(7):
        needed.append(optimizer.needs_graph)
        optimizer.zero_grad()
        F.cross_entropy(model(data[0]), data[1]).backward(create_graph=optimizer.needs_graph)
        optimizer.step()
    assert needed == [True, False, False, True, False, False, True]


def test_accumulated_gradients_have_the_curvature_of_the_sum(make, data):
    x, y = data
    ends = []
    for pieces in ([slice(0, 20)], [slice(0, 10), slice(10, 20)]):
        torch.manual_seed(0)
        model = mlp()
        optimizer = make(model)
        for _ in range(3):
            optimizer.zero_grad()
            for piece in pieces:
                loss = F.cross_entropy(model(x[piece]), y[piece]) / len(pieces)
                loss.backward(create_graph=True)
            optimizer.step()
        ends.append(snapshot(model))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-10, atol=1e-12)


def test_clipped_gradients_keep_the_curvature(make, data):
    """What clips in place changes the gradient, not what it is differentiated from."""
    model = mlp()
    optimizer = make(model)
    seen = []
    measure = optimizer._measure
    optimizer._measure = lambda *a: (
        seen.append(torch.cat([h.flatten() for h in a[3]])),
        measure(*a),
    )
    for scale in (1.0, 1e-3):
        torch.manual_seed(0)
        optimizer.generator.manual_seed(0)
        twin = mlp()
        model.load_state_dict(twin.state_dict())
        optimizer.zero_grad()
        F.cross_entropy(model(data[0]), data[1]).backward(create_graph=True)
        nn.utils.clip_grad_norm_(model.parameters(), scale)
        optimizer.step()
    assert torch.equal(seen[0], seen[1])


def test_a_linear_loss(make):
    """No curvature, and no graph of the gradient: the closure says that this is no mistake."""
    w = nn.Parameter(torch.ones(3))
    optimizer = make([w])
    optimizer.step(lambda: (w * torch.tensor([1.0, 2.0, 0.0])).sum())
    assert torch.isfinite(w).all()
    assert bool((w[:2] < 1).all())


@pytest.mark.parametrize(
    ("closure", "message"),
    [
        (lambda m, x: m(x), "must return the loss, a scalar"),
        (lambda m, x: 1.0, "got float"),
        (lambda m, x: m(x).sum().detach(), "no graph"),
    ],
)
def test_closures_of_no_kind(make, data, closure, message):
    model = mlp()
    optimizer = make(model)
    with pytest.raises(ConfigurationError, match=message):
        optimizer.step(lambda: closure(model, data[0]))


def test_scaled_gradients_are_refused_by_name(make, data):
    model = mlp().float()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = make(model)
    scaler.scale(F.cross_entropy(model(data[0].float()), data[1])).backward(create_graph=True)
    with pytest.raises(ConfigurationError, match="no GradScaler"):
        scaler.step(optimizer)


def test_a_scaler_that_is_off_is_none(make, data):
    model = mlp().float()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = make(model)
    scaler.scale(F.cross_entropy(model(data[0].float()), data[1])).backward(create_graph=True)
    start = snapshot(model)
    scaler.step(optimizer)
    assert not torch.equal(snapshot(model), start)


def test_attention_can_be_probed(make):
    model = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    x = torch.randn(3, 5, 4)
    optimizer = make(model)
    optimizer.param_groups[0]["lr"] = 1e-2
    losses = [float(optimizer.step(lambda: (model(x) - x).square().mean())) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_intervals(make):
    with pytest.raises(ConfigurationError, match="hessian_interval must be at least 1"):
        make(mlp(), hessian_interval=0)


def test_a_subclass_says_what_it_measures():
    model = mlp()
    optimizer = HessianOptimizer(model, {"lr": 0.1}, hessian_interval=1, seed=0)
    with pytest.raises(NotImplementedError):
        optimizer.step(lambda: model(torch.randn(2, 3)).square().sum())
