"""Noise in the inputs, and the gradient penalty that it is to second order."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import nn
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.objectives import InputNoise, input_gradient_penalty


def expectation(function, x, std):
    """E[f(x + σξ)] over two coordinates of noise, by 20 × 20 Gauss–Hermite nodes."""
    nodes, weights = (torch.tensor(a) for a in hermegauss(20))
    total = torch.zeros(())
    for (a, u), (b, v) in itertools.product(zip(nodes, weights, strict=True), repeat=2):
        total = total + u * v * function(x + std * torch.stack([a, b]))
    return total / (2 * math.pi)


class TestPenalty:
    """Mean over samples of E_ξ[ℓ(x + σξ)] = ℓ + (σ²/2) E_y‖∇ₓℓ‖², y the model's own labels."""

    @staticmethod
    def penalty(logits_of, x, std):
        x = x.clone().requires_grad_()
        logits = logits_of(x)
        total = torch.zeros(())
        for k in range(logits.shape[1]):
            p = logits.softmax(1)[:, k].detach()
            # ‖√p ∇ℓ‖² = p ‖∇ℓ‖², so each label enters with its probability.
            losses = p.sqrt() * -logits.log_softmax(1)[:, k]
            total = total + input_gradient_penalty(losses, x, std**2 / 2)
        return total.detach()

    def test_softmax_regression_to_fourth_order(self):
        """What is left falls by 2⁴ = 16 as σ halves; the labels drop out of it, as logits are
        linear and the labels' part of the loss with them."""
        weight, x, y = torch.randn(3, 2), torch.randn(4, 2), torch.randint(3, (4,))

        def logits_of(inputs):
            return inputs @ weight.T

        def loss(inputs):
            return F.cross_entropy(logits_of(inputs), y)

        left = []
        for std in (0.1, 0.05):
            noisy = expectation(loss, x, std)
            penalised = loss(x) + self.penalty(logits_of, x, std)
            left.append(float(noisy - penalised))
            assert abs(left[-1]) < 0.01 * float(noisy - loss(x))
        assert left[0] / left[1] == pytest.approx(16, rel=0.05)

    def test_linear_least_squares_exactly(self):
        """½(wᵀ(x + σξ) − y)² is ½(wᵀx − y)² + ½σ²‖w‖² in expectation; the penalty at labels one
        deviation away, y = wᵀx ± 1, is the same."""
        w, x, y = torch.randn(2), torch.randn(5, 2), torch.randn(5)
        std = 0.7
        added = expectation(lambda i: (i @ w - y).square().mean() / 2, x, std)
        added -= (x @ w - y).square().mean() / 2
        torch.testing.assert_close(added, std**2 / 2 * w.square().sum())
        x.requires_grad_()
        mean = x @ w
        losses = (mean - (mean.detach() + 1)).square() / 2
        penalty = input_gradient_penalty(losses, x, std**2 / 2)
        torch.testing.assert_close(penalty.detach(), added)

    def test_the_layers_noise_is_that_noise(self):
        """60,000 draws of a mean come within five standard errors of the quadrature."""
        weight = torch.randn(3, 2)
        x = torch.tensor([[0.3, -0.4]])
        noise = InputNoise(0.5, seed=1)
        losses = F.cross_entropy(
            noise(x.expand(60_000, 2)) @ weight.T, torch.zeros(60_000).long(), reduction="none"
        )
        expected = expectation(lambda i: F.cross_entropy(i @ weight.T, torch.tensor([0])), x, 0.5)
        error = losses.std() / math.sqrt(len(losses))
        assert abs(losses.mean() - expected) < 5 * error


class TestLayer:
    def test_training_only(self):
        noise, x = InputNoise(0.1), torch.randn(4, 3)
        assert not torch.equal(noise(x), x)
        assert noise.eval()(x) is x
        assert InputNoise(0.0)(x) is x

    def test_torchs_generators_stay_out_of_it(self):
        noise, x = InputNoise(0.1, seed=5), torch.randn(4, 3)
        before = torch.get_rng_state()
        first = noise(x)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(99)
        assert torch.equal(InputNoise(0.1, seed=5)(x), first)
        assert not torch.equal(InputNoise(0.1, seed=6)(x), first)

    @pytest.mark.parametrize("way", ["state", "pickle", "deepcopy"])
    def test_a_copy_goes_on_alike(self, way):
        model, x = nn.Sequential(InputNoise(0.1, seed=5), nn.Linear(3, 2)), torch.randn(4, 3)
        model(x)
        if way == "state":
            other = nn.Sequential(InputNoise(0.1), nn.Linear(3, 2))
            other.load_state_dict(model.state_dict())
        else:
            other = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
        assert torch.equal(model(x), other(x))

    def test_dtype_and_device_are_the_inputs(self):
        assert InputNoise(0.1)(torch.zeros(2, 3, dtype=torch.float32)).dtype == torch.float32
        assert InputNoise(0.1)(torch.zeros(2, 3, device="meta")).is_meta

    @pytest.mark.parametrize(
        ("call", "says"),
        [
            (lambda: InputNoise(-1.0), "std"),
            (lambda: InputNoise(math.nan), "std"),
            (lambda: InputNoise(0.1)(torch.ones(2, 3, dtype=torch.uint8)), "floating"),
            (lambda: InputNoise(0.1)(torch.ones(0, 3)), "empty"),
        ],
    )
    def test_errors(self, call, says):
        with pytest.raises(ConfigurationError, match=says):
            call()
