import math

import pytest
import torch

from npg.errors import ConfigurationError
from npg.steps import kl_clip_factor, kl_step_length, norm_constraint_factor


def test_by_hand():
    """√(2 · 0.01 / 8) = 0.05; √(2 · 0.01 / 0.005) = 2 is no clip."""
    assert float(kl_clip_factor(torch.tensor(8.0), 0.01)) == pytest.approx(0.05, rel=1e-14)
    assert float(kl_clip_factor(torch.tensor(0.005), 0.01)) == 1.0
    assert float(norm_constraint_factor(torch.tensor(8.0), 0.02)) == pytest.approx(0.05, rel=1e-14)
    assert float(norm_constraint_factor(torch.tensor(4.0), 4.0)) == 1.0


def test_the_clipped_step_is_on_the_boundary():
    """½ ΔᵀF̂Δ = δ for groups with learning rates of their own, or less where it was less."""
    target_kl = 0.01
    for scale, clips in ((1.0, True), (1e-3, False)):
        inner, parts = torch.zeros(()), []
        for rate in (scale, 0.3 * scale):
            factor, gradient = torch.randn(5, 8), torch.randn(5)
            fisher = factor @ factor.T
            solution = torch.linalg.solve(fisher, gradient)
            inner = inner + rate**2 * gradient @ solution
            parts.append((fisher, -rate * solution))
        clip = kl_clip_factor(inner, target_kl)
        kl = sum(0.5 * (clip * d) @ f @ (clip * d) for f, d in parts)
        assert float(kl) == pytest.approx(target_kl) if clips else float(kl) < target_kl
        assert (float(clip) < 1) is clips


def test_the_unit_is_that_of_the_kl_step():
    inner = torch.tensor(3.0)
    assert float(kl_clip_factor(inner, 0.02)) == pytest.approx(kl_step_length(3.0, 0.02), rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (0.0, 1.0),
        (-0.0, 1.0),
        (-1e-9, 1.0),
        (-5.0, 1.0),
        (1e-300, 1.0),  # 0 in float32
        (1e30, 1e-16),  # √(2 · 0.005 / 1e30)
        (math.nan, 0.0),
        (math.inf, 0.0),
        (-math.inf, 0.0),
    ],
)
def test_edges(inner, expected, dtype):
    clip = kl_clip_factor(torch.tensor(inner, dtype=dtype), 0.005)
    assert clip.dtype == dtype
    assert clip.shape == ()
    assert float(clip) == pytest.approx(expected, rel=1e-6)
    number = kl_clip_factor(inner, 0.005)
    assert isinstance(number, float)
    assert number == pytest.approx(expected, rel=1e-14)


def test_reads_nothing_from_the_device():
    assert kl_clip_factor(torch.ones((), device="meta"), 0.01).shape == ()
    assert norm_constraint_factor(torch.ones((), device="meta"), 0.01).shape == ()


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_targets_are_checked(bad):
    with pytest.raises(ConfigurationError, match="target_kl must be positive"):
        kl_clip_factor(torch.ones(()), bad)
    with pytest.raises(ConfigurationError, match="constraint must be positive"):
        norm_constraint_factor(torch.ones(()), bad)
