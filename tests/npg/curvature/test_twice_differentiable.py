"""Convolutions and rectifiers that can be differentiated twice, against torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.curvature import twice_differentiable
from npg.curvature.twice_differentiable import TwiceDifferentiable

KINDS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SETTINGS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": 2, "dilation": 2},
    {"groups": 2},
    {"stride": 2, "padding": 1, "dilation": 2, "groups": 4},
]


@pytest.fixture(autouse=True)
def _every_rectifier(monkeypatch):
    monkeypatch.setattr(twice_differentiable, "MANY", 0)


def second(loss, tensors, vectors):
    """The loss, its gradient g, and the gradient of ⟨g, vectors⟩."""
    gradient = torch.autograd.grad(loss, tensors, create_graph=True)
    return [loss, *gradient, *torch.autograd.grad(gradient, tensors, vectors)]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dimensions", KINDS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_same_derivatives_as_torch(dimensions, settings, with_bias):
    channels = 4 // settings.get("groups", 1)
    sizes = [7, 6, 5][:dimensions]
    x = torch.randn(2, 4, *sizes, requires_grad=True)
    weight = torch.randn(8, channels, *[2] * dimensions, requires_grad=True)
    bias = torch.randn(8, requires_grad=True) if with_bias else None
    tensors = [t for t in (x, weight, bias) if t is not None]
    vectors = [torch.randn_like(t) for t in tensors]

    def loss():
        y = KINDS[dimensions](x, weight, bias, **settings)
        return F.relu(y).square().sum() + torch.tanh(y).sum()

    wanted = second(loss(), tensors, vectors)
    with TwiceDifferentiable():
        one = loss()
    for a, b in zip(second(one, tensors, vectors), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("needed", ["x", "weight", "bias"])
def test_one_input_alone(needed):
    tensors = {
        "x": torch.randn(2, 3, 5, 5),
        "weight": torch.randn(4, 3, 3, 3),
        "bias": torch.randn(4),
    }
    tensors[needed].requires_grad_(True)
    own, vector = [tensors[needed]], [torch.randn_like(tensors[needed])]
    wanted = second(F.conv2d(*tensors.values()).pow(3).sum(), own, vector)
    with TwiceDifferentiable():
        y = F.conv2d(*tensors.values())
    for a, b in zip(second(y.pow(3).sum(), own, vector), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_gradcheck():
    x, weight = (torch.randn(s, requires_grad=True) for s in ((2, 2, 5), (3, 2, 2)))
    bias = torch.randn(3, requires_grad=True)

    def convolution(x, weight, bias):
        with TwiceDifferentiable():
            return F.relu(F.conv1d(x, weight, bias, stride=2, padding=1))

    assert torch.autograd.gradcheck(convolution, (x, weight, bias))
    assert torch.autograd.gradgradcheck(convolution, (x, weight, bias))


def test_the_third_derivative():
    """A Hessian product of a loss that contains a gradient, such as a gradient penalty."""
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    large = torch.randn(2**18 + 1, requires_grad=True)
    own, vector = [weight, large], [torch.randn_like(weight), torch.randn_like(large)]

    def penalised():
        loss = torch.tanh(F.conv2d(x, weight)).square().sum() + F.relu(large).pow(3).sum()
        slopes = torch.autograd.grad(loss, own, create_graph=True)
        return loss + sum(slope.square().sum() for slope in slopes)

    wanted = second(penalised(), own, vector)
    with TwiceDifferentiable():
        found = second(penalised(), own, vector)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: F.conv2d(x, w, padding="same"),
        lambda x, w: F.conv2d(x[0], w),
        lambda x, w: F.relu(x.clone(), inplace=True),
        lambda x, w: F.conv2d(x, w, None, 1, 1),
        lambda x, w: F.conv2d(input=x, weight=w, stride=[2, 1]),
        lambda x, w: torch.relu(x),
        lambda x, w: x.relu(),
        lambda x, w: nn.Conv2d(3, 4, 3, padding_mode="circular", padding=1).double()(x),
    ],
)
def test_every_way_to_call_them(call):
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3, requires_grad=True)
    torch.manual_seed(0)
    wanted = call(x, weight)
    torch.manual_seed(0)
    with TwiceDifferentiable():
        torch.testing.assert_close(call(x, weight), wanted, rtol=1e-12, atol=1e-12)
    with torch.no_grad(), TwiceDifferentiable():
        torch.manual_seed(0)
        assert torch.equal(call(x, weight), wanted)
