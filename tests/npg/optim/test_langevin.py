"""Langevin dynamics against its stationary distribution."""

import torch
from torch import nn

from npg.optim import Langevin


class TestLangevin:
    def test_wanders_as_the_stationary_distribution(self):
        """On k x²/2 the chain is autoregressive, with variance T / (k (1 − η k / 2))."""
        rate, temperature = 0.1, 0.5
        curvatures = torch.tensor([0.5, 2.0]).unsqueeze(1)
        x = nn.Parameter(torch.zeros(2, 40_000))
        optimizer = Langevin([x], rate, temperature)
        for _ in range(150):
            x.grad = curvatures * x.detach()
            optimizer.step()
        wanted = temperature / (curvatures * (1 - rate * curvatures / 2)).squeeze()
        torch.testing.assert_close(x.detach().var(1), wanted, rtol=0.03, atol=0)

    def test_cold_it_is_gradient_descent(self):
        p, q = (nn.Parameter(torch.ones(3)) for _ in range(2))
        p.grad = q.grad = torch.tensor([1.0, -2.0, 3.0])
        Langevin([p], 0.1, 0.0).step()
        torch.optim.SGD([q], 0.1).step()
        assert torch.equal(p, q)
