"""Cases that went wrong once: spikes, half precision, late failures, states that do not fit."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import (
    SOAP,
    AdaHessian,
    AdaX,
    FullMatrixAdagrad,
    MuonWithAdamW,
    NormalizedGradient,
    Shampoo,
    SignSGD,
    SophiaG,
    SophiaH,
    create,
    takes,
)
from npg.optim.closures import run_closure
from tests.npg.oracles import mlp


def step(optimizer, parameters, gradients):
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g.clone()
    optimizer.step()


@pytest.mark.parametrize("kind", [Shampoo, SOAP, AdaX])
def test_one_spike_is_forgotten(kind):
    """Its square overflows: no decay would ever take that out of an average again."""
    p, q = (nn.Parameter(torch.ones(3, 3, dtype=torch.float32)) for _ in range(2))
    one, two = (kind([x], 0.01, weight_decay=0.0) for x in (p, q))
    for i in range(25):
        gradient = torch.randn(3, 3, dtype=torch.float32)
        if i == 7:
            step(one, [p], [torch.full((3, 3), 1e20, dtype=torch.float32)])
        step(one, [p], [gradient])
        step(two, [q], [gradient])
    assert torch.equal(p, q)
    assert one.state[p]["skipped"] == 1


@pytest.mark.parametrize("name", ["adax", "adaxw", "shampoo", "sign-sgd", "soap"])
def test_float16_stays_finite_where_gradients_are_zero(name):
    parameters = [nn.Parameter(torch.ones(s, dtype=torch.float16)) for s in ((3, 2), (4,))]
    optimizer = create(name, parameters, 1e-2)
    for _ in range(4):
        gradients = [torch.randn(p.shape).half() for p in parameters]
        for g in gradients:
            g.view(-1)[0] = 0
        step(optimizer, parameters, gradients)
    assert all(torch.isfinite(p).all() for p in parameters)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_a_normalised_step_has_its_length_at_every_scale(scale):
    p = nn.Parameter(torch.zeros(3, dtype=torch.float32))
    gradient = scale * torch.tensor([2.0, -1.0, 2.0], dtype=torch.float32)
    step(NormalizedGradient([p], 0.5, momentum=0.0), [p], [gradient])
    wanted = torch.tensor([-1.0, 0.5, -1.0], dtype=torch.float32) / 3
    torch.testing.assert_close(p.detach(), wanted)


@pytest.mark.parametrize("kind", [SignSGD, Shampoo])
@pytest.mark.parametrize("wrong", ["rate", "sparse"])
def test_a_second_group_that_is_refused_leaves_the_first_alone(kind, wrong):
    first, second = nn.Parameter(torch.ones(2)), nn.Embedding(3, 2, sparse=wrong == "sparse")
    optimizer = kind([{"params": [first]}, {"params": second.parameters()}], 0.1)
    first.grad = torch.ones(2)
    second(torch.tensor([1])).sum().backward()
    if wrong == "rate":
        optimizer.param_groups[1]["lr"] = math.nan
    with pytest.raises(ConfigurationError):
        optimizer.step()
    assert torch.equal(first, torch.ones(2))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda p: Shampoo(p, block_size=4), lambda p: Shampoo(p, block_size=2)),
        (lambda p: SOAP(p), lambda p: SOAP(p, precondition_vectors=True)),
        (lambda p: FullMatrixAdagrad(p, memory=8), lambda p: FullMatrixAdagrad(p, memory=2)),
        (lambda p: torch.optim.Adam(p), lambda p: SophiaH(p)),
        (lambda p: torch.optim.Adam(p), lambda p: Shampoo(p)),
    ],
)
def test_a_state_that_does_not_fit_is_refused(one, other):
    parameters = [nn.Parameter(torch.ones(4, 4))]
    saved = one(parameters)
    step(saved, parameters, [torch.randn(4, 4)])
    with pytest.raises(ConfigurationError, match="the state"):
        other(parameters).load_state_dict(saved.state_dict())


@pytest.mark.parametrize("name", ["adax", "shampoo", "sign-sgd", "soap", "langevin"])
def test_a_rate_may_be_a_tensor(name):
    p, q = (nn.Parameter(torch.ones(3, 2)) for _ in range(2))
    one, two = create(name, [p], torch.tensor(0.1)), create(name, [q], 0.1)
    for _ in range(3):
        gradient = torch.randn(3, 2)
        step(one, [p], [gradient])
        step(two, [q], [gradient])
    torch.testing.assert_close(p, q)
    one.param_groups[0]["lr"] = torch.tensor(-0.1)
    with pytest.raises(ConfigurationError, match="lr must be in"):
        step(one, [p], [gradient])


def test_a_late_parameters_first_step_has_its_whole_length():
    """While it waits for a probe its mean gradient gathers, so that the bias is known."""
    first, late = (nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = AdaHessian([first], 0.1, hessian_interval=4, eps=0.0)
    optimizer.step(lambda: first.square().sum())
    optimizer.add_param_group({"params": [late]})
    for _ in range(3):
        optimizer.step(lambda: (first.square() + late).sum() + 0.5 * late.square().sum())
        assert float(late) == 1.0
    optimizer.step(lambda: (first.square() + late).sum() + 0.5 * late.square().sum())
    assert float(late) == pytest.approx(1 - 0.1 * 2.0)


class TestClosures:
    @pytest.mark.parametrize("to_none", [True, False])
    def test_clearing_gradients_is_no_backward_pass(self, to_none):
        model, x = mlp(), torch.randn(4, 3)
        model(x).sum().backward()
        optimizer = SophiaH(model, hessian_interval=10)

        def closure():
            optimizer.zero_grad(set_to_none=to_none)
            return model(x).square().mean()

        assert not run_closure(closure, list(model.parameters()))[1]
        for _ in range(3):
            optimizer.step(closure)
            assert all(bool(p.grad.any()) for p in model.parameters())

    def test_views_of_convolutions(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.Conv2d(2, 4, 3), nn.Linear(36, 3)

            def forward(self, x):
                return self.head(F.relu(self.body(x)).view(len(x), -1))

        model, x, y = Net(), torch.randn(6, 2, 5, 5), torch.randint(3, (6,))
        for kind in (SophiaH, AdaHessian):
            optimizer = kind(model, 1e-3)
            assert math.isfinite(float(optimizer.step(lambda: F.cross_entropy(model(x), y))))

    def test_torchs_function_transforms(self):
        body = nn.Conv1d(2, 3, 2)
        x, optimizer = torch.randn(4, 2, 5), SophiaH(body, 1e-3)

        def closure():
            per_sample = torch.func.vmap(lambda one: body(one.unsqueeze(0)).square().mean())(x)
            return per_sample.mean()

        assert math.isfinite(float(optimizer.step(closure)))


def test_images_of_logits_are_refused_with_the_remedy():
    """Classes in dimension 1 of four: the last would be taken for them."""
    model = nn.Conv2d(1, 3, 1)
    x, y = torch.randn(2, 1, 5, 5), torch.randint(3, (2, 5, 5))
    optimizer = SophiaG(model, likelihood="categorical")
    with pytest.raises(ConfigurationError, match="movedim"):
        F.cross_entropy(model(x), y).backward()

    def last(z):
        return torch.distributions.Categorical(logits=z.movedim(1, -1))

    optimizer = SophiaG(model, likelihood=last)
    F.cross_entropy(model(x), y).backward()
    assert optimizer.bartlett.seen == 50
    optimizer.step()


def test_muon_leaves_out_what_is_not_finite():
    parameters = [nn.Parameter(torch.ones(s)) for s in ((2, 2), (3,))]
    optimizer = MuonWithAdamW(parameters)
    step(optimizer, parameters, [torch.full((2, 2), math.nan), torch.ones(3)])
    assert torch.equal(parameters[0], torch.ones(2, 2))
    assert bool((parameters[1] < 1).all())
    assert parameters[0].grad is not None


def test_signs_under_fake_tensors_stay_there():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = nn.Linear(2, 2)
        SophiaH(model).step(lambda: model(torch.randn(3, 2)).square().mean())
    model = nn.Linear(2, 2)
    SophiaH(model).step(lambda: model(torch.randn(3, 2)).square().mean())


def test_options_that_are_handed_on_and_those_that_are_not():
    assert takes("adaxw", "foreach")
    assert takes("ekfac", "damping")
    assert not takes("normalized-gradient", "foreach")
    assert not takes("shampoo", "defaults")


class Replica(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = mlp()


@pytest.mark.parametrize("kind", [AdaHessian, SophiaH])
def test_replicas_are_probed_through_a_forward_only_closure(kind, monkeypatch):
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", Replica)
    model = Replica()
    optimizer = kind(model)
    model.module(torch.randn(3, 3)).sum().backward(create_graph=True)
    with pytest.raises(ConfigurationError, match="give step a closure"):
        optimizer.step()
