"""Gains against closed forms, norms against what they should stay."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.special import erf
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from npg.errors import ConfigurationError
from npg.init import initialise_, norm_preserving_gain

SCHEMES = ["orthogonal", "he", "xavier"]


def stack(activation, width=256, depth=50):
    parts = [p for _ in range(depth) for p in (nn.Linear(width, width, bias=False), activation())]
    return nn.Sequential(*parts, nn.Linear(width, width, bias=False))


def mean_square(x):
    return float(x.detach().square().mean())


class TestGain:
    @pytest.mark.parametrize(
        ("nonlinearity", "second_moment"),
        [
            ("linear", 1),
            ("relu", 1 / 2),
            ("leaky_relu", (1 + 0.01**2) / 2),
            (nn.LeakyReLU(0.2), (1 + 0.2**2) / 2),
            (nn.PReLU(init=0.3), (1 + 0.3**2) / 2),
            (torch.abs, 1),
            (torch.square, 3),
            (torch.sin, (1 - math.exp(-2)) / 2),
            (torch.erf, 2 / math.pi * math.asin(2 / 3)),  # Williams 1998, equation 11
            (torch.sign, 1),
            (lambda z: z.exp(), math.exp(2)),
            ("selu", 1),
        ],
    )
    def test_closed_forms(self, nonlinearity, second_moment):
        expected = 1 / math.sqrt(second_moment)
        assert norm_preserving_gain(nonlinearity) == pytest.approx(expected, rel=1e-7)

    @pytest.mark.parametrize(
        ("nonlinearity", "function"),
        [
            ("tanh", math.tanh),
            ("sigmoid", lambda z: 1 / (1 + math.exp(-z))),
            ("elu", lambda z: z if z > 0 else math.expm1(z)),
            ("gelu", lambda z: z * (1 + erf(z / math.sqrt(2))) / 2),
            ("silu", lambda z: z / (1 + math.exp(-z))),
            ("softplus", lambda z: math.log1p(math.exp(z))),
            (nn.Hardtanh(), lambda z: min(max(z, -1), 1)),
            (nn.ReLU6(), lambda z: min(max(z, 0), 6)),
            (nn.Softshrink(), lambda z: math.copysign(max(abs(z) - 0.5, 0), z)),
            (nn.Sequential(nn.Tanh(), nn.ReLU(inplace=True)), lambda z: max(math.tanh(z), 0)),
        ],
    )
    def test_against_adaptive_quadrature(self, nonlinearity, function):
        def integrand(z):
            return function(z) ** 2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        moment = quad(integrand, -12, 12, points=(-1, -0.5, 0, 0.5, 1, 6), epsabs=1e-14, limit=500)[
            0
        ]
        assert norm_preserving_gain(nonlinearity) == pytest.approx(moment**-0.5, rel=1e-12)

    @pytest.mark.parametrize("name", ["linear", "relu", "leaky_relu"])
    def test_torchs_table(self, name):
        assert norm_preserving_gain(name) == pytest.approx(nn.init.calculate_gain(name), rel=1e-12)

    @pytest.mark.parametrize(
        ("nonlinearity", "says"),
        [
            ("swish", "must be one of"),
            (nn.Softmax(-1), "elementwise"),
            (nn.GLU(), "elementwise"),
            (nn.Dropout(0.5), "random"),
            (torch.sum, "elementwise"),
            (torch.zeros_like, "no gain"),
            (lambda z: z / 0, "no gain"),
        ],
    )
    def test_errors(self, nonlinearity, says):
        with pytest.raises(ConfigurationError, match=says):
            norm_preserving_gain(nonlinearity)

    def test_a_module_is_left_as_it_was(self):
        module = nn.PReLU(dtype=torch.float32)
        norm_preserving_gain(module)
        assert module.weight.dtype == torch.float32


class TestNorms:
    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize("activation", [nn.Tanh, nn.SELU, nn.Sigmoid, nn.Softplus])
    def test_through_fifty_layers(self, scheme, activation):
        """Where the fixed point attracts, the norm is what it was to a few percent."""
        model = initialise_(stack(activation), scheme)
        assert mean_square(model(torch.randn(64, 256))) == pytest.approx(1, rel=0.25)

    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.ELU])
    def test_through_fifty_layers_of_rectifiers(self, scheme, activation):
        """ReLU scales with its input, so that the fluctuations of 50 layers of 256 multiply: each
        has a relative variance of about 5/256, together a standard deviation of 1.0 in log norm².
        """
        logs = []
        for seed in range(3):
            torch.manual_seed(seed)
            model = initialise_(stack(activation), scheme)
            logs.append(math.log(mean_square(model(torch.randn(64, 256)))))
        assert abs(sum(logs) / 3) < 1.5

    def test_orthogonal_layers_keep_every_norm_exactly(self):
        model = initialise_(stack(nn.Identity, depth=50))
        x = torch.randn(64, 256)
        torch.testing.assert_close(model(x).norm(dim=1), x.norm(dim=1), rtol=1e-10, atol=0)

    def test_with_torchs_own_weights_they_vanish(self):
        assert mean_square(stack(nn.Tanh)(torch.randn(64, 256))) < 1e-12

    @pytest.mark.parametrize("scheme", ["orthogonal", "he"])
    @pytest.mark.parametrize(("inputs", "outputs"), [(64, 512), (512, 64)])
    def test_layers_that_widen_and_narrow(self, scheme, inputs, outputs):
        layer = initialise_(nn.Linear(inputs, outputs, bias=False), scheme)
        out = layer(torch.randn(4000, inputs))
        assert mean_square(out) == pytest.approx(1, rel=0.05)

    def test_xavier_is_between_forward_and_backward(self):
        """Variance 2/(n + m): the forward norm² is 2n/(n + m), the backward one 2m/(n + m)."""
        weight = initialise_(nn.Linear(300, 100), "xavier").weight.detach()
        assert float(weight.var()) == pytest.approx(2 / 400, rel=0.03)

    @pytest.mark.parametrize("scheme", ["orthogonal", "he"])
    @pytest.mark.parametrize(
        ("layer", "size"),
        [
            (lambda: nn.Conv1d(32, 64, 5, bias=False), (64,)),
            (lambda: nn.Conv2d(32, 16, 3, bias=False), (20, 20)),
            (lambda: nn.Conv2d(32, 64, 3, groups=4, bias=False), (20, 20)),
            (lambda: nn.Conv2d(64, 64, 3, groups=64, bias=False), (20, 20)),
            (lambda: nn.Conv2d(32, 16, 2, stride=2, dilation=2, bias=False), (20, 20)),
            (lambda: nn.Conv3d(8, 16, 2, bias=False), (8, 8, 8)),
            (lambda: nn.ConvTranspose1d(32, 16, 4, bias=False), (200,)),
            (lambda: nn.ConvTranspose2d(32, 16, 4, stride=2, bias=False), (40, 40)),
            (lambda: nn.ConvTranspose2d(32, 64, 4, stride=2, groups=4, bias=False), (40, 40)),
        ],
    )
    def test_convolutions(self, layer, size, scheme):
        """Away from the borders, where fewer inputs meet."""
        layer = initialise_(layer(), scheme)
        x = torch.randn(8, layer.in_channels, *size)
        out = layer(x)
        inner = (..., *(slice(8, -8) for _ in size)) if min(out.shape[2:]) > 20 else ...
        assert mean_square(out[inner]) == pytest.approx(1, rel=0.1)


class TestShapes:
    @pytest.mark.parametrize(("inputs", "outputs"), [(5, 5), (3, 8), (8, 3)])
    def test_orthogonal(self, inputs, outputs):
        weight = initialise_(nn.Linear(inputs, outputs)).weight.detach()
        small = weight @ weight.T if outputs <= inputs else weight.T @ weight
        size = max(1, outputs / inputs)
        torch.testing.assert_close(small, size * torch.eye(min(inputs, outputs)))

    def test_hes_columns_are_nearly_orthogonal(self):
        """Cosines of independent normal columns have the deviation 1/√n."""
        weight = initialise_(nn.Linear(200, 2000), "he").weight.detach()
        unit = weight / weight.norm(dim=0)
        cosines = (unit.T @ unit)[~torch.eye(200, dtype=torch.bool)]
        assert float(cosines.std()) == pytest.approx(2000**-0.5, rel=0.05)
        assert float(cosines.abs().max()) < 6 * 2000**-0.5
        lengths = weight.norm(dim=0) / math.sqrt(2000 / 200)
        torch.testing.assert_close(lengths, torch.ones(200), rtol=0.08, atol=0)

    def test_orthogonal_is_torchs(self):
        layer = initialise_(nn.Linear(6, 4), generator=torch.Generator().manual_seed(3))
        expected = nn.init.orthogonal_(
            torch.empty(4, 6), generator=torch.Generator().manual_seed(3)
        )
        assert torch.equal(layer.weight, expected)


class TestWalk:
    def test_activations_are_those_in_front(self):
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Sequential(nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(), nn.Dropout(0.1)),
            nn.Linear(8, 8),
            nn.ReLU(),
            nn.LayerNorm(8),  # behind it the mean square is 1 again
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Tanh(),
            nn.ReLU(),
            nn.Linear(8, 8),
            nn.Softmax(-1),
        )
        rectified = norm_preserving_gain(lambda z: z.tanh().relu())
        gains = [1, math.sqrt(2), norm_preserving_gain("tanh"), 1, 1, rectified]
        initialise_(model)
        layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        for layer, gain in zip(layers, gains, strict=True):
            largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
            assert float(largest) == pytest.approx(gain)

    def test_one_nonlinearity_for_every_layer(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        with pytest.raises(ConfigurationError, match="nonlinearity="):
            initialise_(Net())
        for layer in initialise_(Net(), nonlinearity="relu").children():
            largest = torch.linalg.matrix_norm(layer.weight.detach(), 2)
            assert float(largest) == pytest.approx(math.sqrt(2))

    def test_everything_else_stays(self):
        model = nn.ModuleList(
            [
                nn.LayerNorm(4),
                nn.BatchNorm1d(4),
                nn.Embedding(5, 4),
                nn.MultiheadAttention(4, 2),
                nn.LSTM(4, 4),
                nn.Linear(4, 4),
            ]
        )
        before = {name: p.clone() for name, p in model.named_parameters()}
        initialise_(model, nonlinearity="relu")
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert changed == {"5.weight"}

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_a_generator_decides(self, scheme):
        def drawn(seed):
            torch.rand(1)
            generator = torch.Generator().manual_seed(seed)
            model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
            initialise_(model, scheme, generator=generator)
            return torch.cat([model[0].weight.flatten(), model[2].weight.flatten()])

        assert torch.equal(drawn(1), drawn(1))
        assert not torch.equal(drawn(1), drawn(2))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_other_precisions(self, dtype):
        layer = initialise_(nn.Linear(8, 8, dtype=dtype))
        assert layer.weight.dtype == dtype
        product = layer.weight.detach().double() @ layer.weight.detach().double().T
        torch.testing.assert_close(product, torch.eye(8), rtol=0, atol=0.03)

    def test_it_returns_the_module_and_makes_no_graph(self):
        model = nn.Sequential(nn.Linear(3, 3))
        assert initialise_(model) is model
        assert model[0].weight.grad_fn is None
        assert model[0].weight.requires_grad

    @pytest.mark.parametrize(
        ("call", "says"),
        [
            (lambda: initialise_(nn.Linear(2, 2), "normal"), "scheme"),
            (lambda: initialise_(nn.LayerNorm(2), nonlinearity="relu"), "no linear"),
            (lambda: initialise_(nn.Sequential(nn.ReLU())), "no linear"),
            (lambda: initialise_(nn.LSTM(2, 2)), "LSTM"),
            (lambda: initialise_(nn.Sequential(nn.MultiheadAttention(2, 1))), "MultiheadAtt"),
            (lambda: initialise_(weight_norm(nn.Linear(2, 2))), "parametrised"),
            (lambda: initialise_(nn.LazyLinear(2)), "forward pass"),
            (lambda: initialise_(nn.Linear(2, 2, dtype=torch.complex64)), "complex64"),
            (lambda: initialise_(nn.Sequential(nn.Softmax(-1), nn.Linear(2, 2))), "elementwise"),
        ],
    )
    def test_errors(self, call, says):
        with pytest.raises(ConfigurationError, match=says):
            call()

    def test_an_error_changes_nothing(self):
        model = nn.Sequential(nn.Linear(2, 2), weight_norm(nn.Linear(2, 2)))
        before = model[0].weight.clone()
        with pytest.raises(ConfigurationError):
            initialise_(model)
        assert torch.equal(model[0].weight, before)
