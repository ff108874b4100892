"""Steps whose length is not the gradient's."""

import math

import pytest
import torch
from torch import nn

from npg.optim import NormalizedGradient, SignSGD


class TestDirections:
    def test_every_entry_moves_by_the_rate(self):
        p = nn.Parameter(torch.zeros(4))
        p.grad = torch.tensor([1e-30, -5.0, 0.0, 1e30])
        SignSGD([p], 0.1, momentum=0.0).step()
        assert torch.equal(p.detach(), torch.tensor([-0.1, 0.1, 0.0, -0.1]))

    def test_the_sign_of_the_average(self):
        p = nn.Parameter(torch.zeros(()))
        optimizer = SignSGD([p], 0.1, momentum=0.5)
        for gradient, wanted in ((1.0, -0.1), (-0.4, -0.2), (-2.0, -0.1)):
            p.grad = torch.tensor(gradient)  # means .5, .05, −.975
            optimizer.step()
            assert float(p) == pytest.approx(wanted)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_a_step_has_the_length_of_the_rate(self, dtype):
        parameters = [nn.Parameter(torch.randn(s, dtype=dtype)) for s in ((3,), (2, 4))]
        start = [p.detach().double().clone() for p in parameters]
        gradients = [torch.randn(p.shape, dtype=dtype) for p in parameters]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        NormalizedGradient(parameters, 0.5, momentum=0.0).step()
        moved = [p.detach().double() - s for p, s in zip(parameters, start, strict=True)]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        bound = 0.02 if dtype == torch.bfloat16 else 1e-6
        for move, g in zip(moved, gradients, strict=True):
            torch.testing.assert_close(move, -0.5 * g.double() / norm, atol=bound, rtol=0)

    def test_one_norm_for_parameters_of_different_age(self):
        a, b = (nn.Parameter(torch.zeros(1)) for _ in range(2))
        optimizer = NormalizedGradient([a, b], 1.0, momentum=0.0)
        a.grad = torch.ones(1)
        optimizer.step()
        a.grad, b.grad = torch.full((1,), 3.0), torch.full((1,), 4.0)
        optimizer.step()
        assert (float(a), float(b)) == pytest.approx((-1.6, -0.8))
