"""Optimizers by name."""

import pytest
import torch

from npg.errors import ConfigurationError
from npg.optim import create, names, takes, train_step
from tests.npg.optim.helpers import snapshot
from tests.npg.optim.variants import OF_TORCH, each_own, forward, make
from tests.npg.oracles import flat, mlp


@pytest.fixture
def data():
    return torch.randn(40, 3), torch.randint(3, (40,))


def test_names():
    assert names() == sorted(names())
    assert {"natural-gradient", "newton-cg"} <= set(names())


def test_options_and_rate_are_handed_on():
    optimizer = create("natural-gradient", mlp(), 0.5, damping=0.25)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["damping"] == 0.25
    assert create("natural-gradient", mlp()).param_groups[0]["lr"] == 1.0


def test_unknown_names_and_options():
    with pytest.raises(ConfigurationError, match=r"'adamm'; there are adafactor, "):
        create("adamm", mlp())
    with pytest.raises(TypeError, match="momentum"):
        create("newton-cg", mlp(), momentum=0.9)


def test_torchs_own_are_torchs_own():
    for name, kind in OF_TORCH.items():
        assert type(create(name, mlp())) is kind
    assert create("adam", mlp()).param_groups[0]["lr"] == 1e-3
    group = create("sgd", mlp(), nesterov=True).param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.05, 0.9, True)
    assert create("sgd", mlp(), 0.5, momentum=0.0).param_groups[0]["momentum"] == 0.0


def test_what_a_constructor_takes():
    assert takes("natural-gradient", "likelihood")
    assert takes("newton-cg", "likelihood")
    assert not takes("adahessian", "likelihood")
    assert not takes("adam", "likelihood")
    with pytest.raises(ConfigurationError, match="no optimizer is named 'adamm'"):
        takes("adamm", "likelihood")


@each_own
def test_protocol_says_how_each_is_driven(variant):
    assert make(variant, mlp()).protocol in ("gradient", "function", "hessian")


def test_train_step_drives_torchs_own(data):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start, closure = snapshot(model), forward(model, *data)
    for _ in range(2):  # the second would see the first's gradient
        start = snapshot(model)
        loss, _ = closure()
        gradient = flat(torch.autograd.grad(loss, list(model.parameters())))
        assert train_step(optimizer, closure) == pytest.approx(float(loss.detach()))
        torch.testing.assert_close(snapshot(model), start - 0.1 * gradient)


def test_an_objective_is_for_searches_alone(data):
    model = mlp()
    optimizer = create("sgd", model)
    with pytest.raises(ConfigurationError, match="takes no objective="):
        train_step(optimizer, forward(model, *data), lambda logits: logits.sum())
