"""AdaX against its published recursion and its closed sum."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from npg.optim import AdaX, AdaXW
from tests.npg.oracles import TIGHT


class TestAdaX:
    @pytest.mark.parametrize("decoupled", [False, True])
    def test_is_the_published_recursion(self, decoupled):
        first, second, lr, eps, decay = 0.9, 1e-2, 0.1, 1e-3, 0.05
        kind = AdaXW if decoupled else AdaX
        p = nn.Parameter(torch.randn(5))
        x, m, v = p.detach().clone(), torch.zeros(5), torch.zeros(5)
        optimizer = kind([p], lr, (first, second), eps, decay)
        for t in range(1, 200):
            g = torch.randn(5)
            p.grad = g.clone()
            optimizer.step()
            if decoupled:
                x = x * (1 - lr * decay)
            else:
                g = g + decay * x
            m = first * m + (1 - first) * g
            v = (1 + second) * v + second * g**2
            x = x - lr * m / ((v / ((1 + second) ** t - 1)).sqrt() + eps)
            torch.testing.assert_close(p.detach(), x, **TIGHT)

    @pytest.mark.parametrize("last", [999_999, 10_000_000])
    def test_late_steps(self, last):
        """Where the plain recursion has overflowed: (1 + β₂)ᵗ is no float32 after 880,000 steps."""
        p = nn.Parameter(torch.zeros((), dtype=torch.float32))
        optimizer = AdaX([p], 1e-3)
        p.grad = torch.ones_like(p)
        optimizer.step()
        state = optimizer.state[p]
        state["step"] = last
        p.grad = torch.full_like(p, 200.0)
        optimizer.step()
        fresh = 1e-4 / (1 - math.exp(-(last + 1) * math.log1p(1e-4))) * math.exp(-100)
        assert fresh < 1e-40  # the past has all of the weight
        assert float(state["mean_square"]) == 1.0
        assert torch.isfinite(p)

    @pytest.mark.slow
    def test_a_million_steps(self):
        second = 1e-4
        p = nn.Parameter(torch.zeros((), dtype=torch.float32))
        optimizer = AdaX([p], 0.0, (0.9, second))
        squares = np.empty(1_000_000)
        for t in range(len(squares)):
            p.grad = torch.full_like(p, 1.0 + (t % 7))
            squares[t] = (1.0 + (t % 7)) ** 2
            optimizer.step()
        exponents = (np.arange(len(squares)) + 1) * np.log1p(second)
        shares = np.exp(-exponents)  # (1 + β₂)^(t − s) / (1 + β₂)^t
        wanted = second * (shares @ squares) / -math.expm1(-len(squares) * math.log1p(second))
        assert float(optimizer.state[p]["mean_square"]) == pytest.approx(wanted, rel=1e-3)

    def test_its_memory_is_the_closed_sum(self):
        """v̂ = Σ (1 + β₂)^(t−s) β₂ g² / ((1 + β₂)ᵗ − 1)."""
        second = 1e-4
        optimizer = AdaX([p := nn.Parameter(torch.zeros(()))], 0.0, (0.9, second))
        squares = []
        for i in range(300):
            p.grad = torch.tensor(math.sin(i) + 0.1)
            squares.append(float(p.grad) ** 2)
            optimizer.step()
        weights = second * (1 + second) ** np.arange(299, -1, -1)
        wanted = float(weights @ np.array(squares)) / math.expm1(300 * math.log1p(second))
        assert float(optimizer.state[p]["mean_square"]) == pytest.approx(wanted, rel=1e-12)

    def test_without_growth_it_is_the_mean_of_all(self):
        optimizer = AdaX([p := nn.Parameter(torch.zeros(()))], 0.0, (0.9, 0.0))
        for value in (1.0, 2.0, 3.0):
            p.grad = torch.tensor(value)
            optimizer.step()
        assert float(optimizer.state[p]["mean_square"]) == pytest.approx(14 / 3)
