import math

import pytest
import torch
from torch import nn

from npg.steps import Trial, TrustRegion


class Line:
    """Records the points it is evaluated at; KL = |t|² and loss = loss(t) of the first entry."""

    def __init__(self, loss=lambda t: -t, kl=lambda t: t * t):
        self.parameters = [nn.Parameter(torch.tensor([0.1, -0.0])), nn.Parameter(torch.ones(2, 1))]
        self.start = [p.detach().clone() for p in self.parameters]
        self.direction = torch.tensor([1.0, 0.0, 2.0, 0.0])
        self.loss, self.kl, self.seen = loss, kl, []

    def __call__(self):
        assert not torch.is_grad_enabled()
        t = float((self.parameters[0] - self.start[0])[0])
        assert float((self.parameters[1] - self.start[1])[0]) == pytest.approx(2 * t)
        self.seen.append(t)
        return Trial(self.loss(t), self.kl(t))

    def search(self, region, loss_before=0.0):
        return region.search(self.parameters, self.direction, loss_before, self)

    def unmoved(self):
        pairs = list(zip(self.parameters, self.start, strict=True))
        return all(torch.equal(p, s) and torch.equal(p.signbit(), s.signbit()) for p, s in pairs)


def test_the_first_trial_is_the_whole_step():
    line = Line()
    fraction, trial = line.search(TrustRegion(2.0))
    assert fraction == 1.0
    assert trial == Trial(pytest.approx(-1.0), pytest.approx(1.0))
    torch.testing.assert_close(line.parameters[0].detach(), torch.tensor([1.1, 0.0]))
    torch.testing.assert_close(line.parameters[1].detach(), torch.tensor([[3.0], [1.0]]))


def test_backtracks_to_the_region():
    """t² ≤ 0.3 is first met by ½: 1, ¼ of KL."""
    line = Line()
    fraction, trial = line.search(TrustRegion(0.3, shrinking_factor=0.5))
    assert line.seen == pytest.approx([1.0, 0.5])
    assert fraction == 0.5
    assert trial.kl == pytest.approx(0.25)
    torch.testing.assert_close(line.parameters[0].detach()[0], torch.tensor(0.6))


def test_backtracks_until_the_loss_falls():
    line = Line(loss=lambda t: t * t - 0.3 * t)  # below zero only for t < 0.3
    fraction, trial = line.search(TrustRegion(10.0, shrinking_factor=0.5))
    assert line.seen == pytest.approx([1.0, 0.5, 0.25])
    assert fraction == 0.25
    assert trial.loss < 0


def test_an_equal_loss_is_no_progress():
    line = Line(loss=lambda t: 0.0)
    assert line.search(TrustRegion(10.0, max_trials=3)) == (0.0, None)
    assert line.unmoved()


def test_the_boundary_itself_leaves_room_for_rounding():
    """A KL of exactly δ in this arithmetic could be above it in another."""
    line = Line(kl=lambda t: 1.0 if t > 0.9 else t)
    assert line.search(TrustRegion(1.0))[0] < 1.0
    line = Line(kl=lambda t: 0.999)
    assert line.search(TrustRegion(1.0))[0] == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_rejected(bad):
    line = Line(loss=lambda t: bad if t > 0.6 else -t)
    assert line.search(TrustRegion(2.0, 0.5))[0] == 0.5
    line = Line(kl=lambda t: bad if t > 0.6 else t * t)
    assert line.search(TrustRegion(math.inf, 0.5))[0] == 0.5


def test_a_failed_search_restores_bit_for_bit():
    line = Line(loss=lambda t: 1.0)
    assert line.search(TrustRegion(2.0, 0.5, max_trials=4)) == (0.0, None)
    assert line.seen == pytest.approx([1.0, 0.5, 0.25, 0.125])
    assert line.unmoved()


def test_an_exception_restores_bit_for_bit():
    def loss(t):
        if t < 0.9:
            raise KeyboardInterrupt
        return 1.0

    line = Line(loss=loss)
    with pytest.raises(KeyboardInterrupt):
        line.search(TrustRegion(2.0))
    assert line.unmoved()


def test_trial_is_finite_only_if_both_are():
    assert Trial(1.0, 0.0).finite
    assert not Trial(math.nan, 0.0).finite
    assert not Trial(1.0, math.inf).finite
