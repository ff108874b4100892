"""The flow driven by the loss: where it ends, and how fast."""

import math

import pytest
import torch
from torch import nn

from npg.optim import LossFlow


class TestLossFlow:
    @staticmethod
    def objective(x):
        return x * (x - 1) * (x - 3) ** 2 + 1.62276

    def test_leaves_the_valley_in_which_descent_stays(self):
        """SYSTEMS.md row B7: from 4 it passes the local minimum at 3 and ends near 0.41."""
        x = nn.Parameter(torch.tensor(4.0))
        flow = LossFlow([x], lr=0.01, max_inverse_norm=1000)
        for _ in range(2500):
            flow.step(lambda: (self.objective(x), x))
        assert float(x) == pytest.approx(0.41, abs=0.02)
        y = nn.Parameter(torch.tensor(4.0))
        descent = torch.optim.SGD([y], 0.01)
        for _ in range(2500):
            descent.zero_grad()
            self.objective(y).backward()
            descent.step()
        assert float(y) == pytest.approx(3.0, abs=0.02)

    def test_the_loss_falls_as_an_exponential(self):
        x = nn.Parameter(torch.tensor([2.0, -1.0]))
        flow = LossFlow([x], lr=1e-3, max_inverse_norm=1e9)

        def closure():
            return (x**4).sum(), x

        first = float(flow.step(closure))
        for _ in range(999):
            last = float(flow.step(closure))
        assert last / first == pytest.approx(math.exp(-0.999), rel=1e-3)

    def test_what_cannot_flow_stays(self):
        x = nn.Parameter(torch.tensor(1.0))
        flow = LossFlow([x], lr=0.1)
        for loss, reason in (
            (lambda: x - 5, "negative"),
            (lambda: 0 * x, "zero gradient"),
            (lambda: x * math.nan, "not finite"),
        ):
            report = flow.step(lambda made=loss: (made(), x))
            assert reason in report.reason
            assert float(x) == 1.0
        assert flow.extra["skipped"] == 3
