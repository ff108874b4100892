"""K-BFGS on layers of every kind."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.curvature.kronecker.means import LayerMeans
from npg.optim import KBFGS
from tests.npg.optim.helpers import objective
from tests.npg.oracles import mlp


@pytest.fixture
def data():
    return torch.randn(24, 3), torch.randint(3, (24,))


class Positions(nn.Module):
    """A linear layer on the patches of a convolution."""

    def __init__(self, convolution):
        super().__init__()
        weight = convolution.weight.detach().movedim(1, -1).flatten(1)  # kernel first
        self.layer = nn.Linear(weight.shape[1], len(weight))
        self.layer.weight = nn.Parameter(weight.clone())
        self.layer.bias = nn.Parameter(convolution.bias.detach().clone())

    def forward(self, x):
        patches = x.unfold(2, 2, 1).movedim(1, -1).flatten(2)  # [N, positions, kernel · channels]
        return self.layer(patches).transpose(1, 2)


class TestLayers:
    @pytest.mark.parametrize("memory", [None, 6])
    def test_a_convolution_is_a_linear_layer_on_patches(self, memory):
        convolution = nn.Conv1d(2, 3, 2)
        linear = Positions(convolution)
        x, target = torch.randn(6, 2, 5), torch.randn(6, 3, 4)
        for model in (convolution, linear):
            optimizer = KBFGS(model, memory=memory)
            for _ in range(6):
                optimizer.step(lambda m=model: (m(x) - target).square().mean())
        weight = convolution.weight.detach().movedim(1, -1).flatten(1)
        torch.testing.assert_close(weight, linear.layer.weight.detach())
        torch.testing.assert_close(convolution.bias, linear.layer.bias)

    @pytest.mark.parametrize("memory", [None, 3])
    def test_layers_of_every_kind(self, memory):
        class Many(nn.Module):
            def __init__(self):
                super().__init__()
                self.table = nn.Embedding(7, 6, padding_idx=0)
                self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
                self.norm = nn.LayerNorm(6)
                self.grouped = nn.Conv1d(6, 6, 2, groups=2)
                self.back = nn.ConvTranspose1d(6, 4, 2, stride=2)
                self.position = nn.Parameter(torch.zeros(5, 6))
                self.large = nn.Parameter(torch.zeros(300))
                self.head = nn.Linear(4, 3, bias=False)

            def forward(self, tokens):
                x = self.table(tokens) + self.position
                x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
                x = self.back(torch.relu_(self.grouped(x.transpose(1, 2)))).mean(2)
                return self.head(x) + self.large[:3]

        model = Many()
        x, y = torch.randint(7, (12, 5)), torch.randint(3, (12,))
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = KBFGS(model, memory=memory)
        losses = [float(optimizer.step(objective(model, x, y))) for _ in range(40)]
        assert losses[-1] < 0.7 * losses[0]
        for name, p in model.named_parameters():
            assert not torch.equal(p.detach(), start[name]), name
        assert torch.equal(model.table.weight[0], start["table.weight"][0])
        if memory is None:
            dense = [f for f in optimizer.preconditioner.outputs if hasattr(f.secants, "matrix")]
            assert all(float(torch.linalg.eigvalsh(f.secants.matrix).min()) > 0 for f in dense)

    def test_an_activation_in_place_does_not_change_the_means(self):
        x = torch.randn(8, 3)
        means = []
        for inplace in (False, True):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace), nn.Linear(4, 2))
            layers = LayerMeans(model, list(model.parameters()))
            with layers.listening():
                found = layers.measure(model(x).square().mean(), list(model.parameters()), "moment")
            means.append(found.means[0])
        torch.testing.assert_close(means[0].outputs, model[0](x).detach().mean(0))
        for one, other in zip(vars(means[0]).values(), vars(means[1]).values(), strict=True):
            torch.testing.assert_close(one, other)

    def test_a_layer_that_is_passed_by_is_told_of_once(self, data):
        class PassedBy(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

            def forward(self, x):
                return F.linear(self.body(x).tanh(), self.head.weight, self.head.bias)

        model = PassedBy()
        optimizer = KBFGS(model, lr=0.1, momentum=0.0, kl_clip=math.inf)
        start = model.head.bias.detach().clone()
        gradient = torch.autograd.grad(objective(model, *data)()[0], model.head.bias)[0]
        with pytest.warns(UserWarning, match=r"^head.weight, head.bias have gradients"):
            optimizer.step(objective(model, *data))
        torch.testing.assert_close(model.head.bias.detach(), start - 0.1 * gradient)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step(objective(model, *data))

    def test_nothing_is_noted_between_steps(self, data):
        model = mlp()
        optimizer = KBFGS(model)
        optimizer.step(objective(model, *data))
        model(data[0]).sum().backward()
        assert not optimizer.layers.capture.waiting
        assert not optimizer.layers.capture.open.noted
