"""Inverses that follow secant pairs: which pairs they take, and both forms of them."""

import math

import pytest
import torch

from npg.preconditioners.bfgs_factors import double_damped
from npg.preconditioners.secants import DenseSecants, LimitedSecants

ROOT = math.sqrt(0.3)


class TestPairs:
    @pytest.mark.parametrize("wrong", [math.nan, math.inf])
    @pytest.mark.parametrize("memory", [None, 4])
    def test_what_is_not_finite_is_left_out(self, wrong, memory):
        secants = DenseSecants(torch.eye(3)) if memory is None else LimitedSecants(torch.ones(3), 4)
        secants.update(torch.ones(3), torch.tensor([1.0, wrong, 1.0]), torch.zeros(3))
        assert torch.equal(secants.times(torch.eye(3)), torch.eye(3))

    @pytest.mark.parametrize("memory", [None, 4])
    def test_little_curvature_next_to_the_gradient_is_left_out(self, memory):
        """sᵀy = 1, ‖s‖² = 1: left out from ‖g‖ = 10⁴ on."""
        secants = DenseSecants(torch.eye(2)) if memory is None else LimitedSecants(torch.ones(2), 4)
        s, y = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
        secants.update(s, y, torch.tensor([1.0001e4, 0.0]))
        assert torch.equal(secants.times(torch.eye(2)), torch.eye(2))
        secants.update(s, y, torch.tensor([0.9999e4, 0.0]))
        assert not torch.equal(secants.times(torch.eye(2)), torch.eye(2))


class TestMemory:
    def test_equals_the_matrix_while_it_lasts(self):
        start = torch.rand(5) + 0.5
        dense, limited = DenseSecants(start.diag_embed()), LimitedSecants(start, 8)
        columns = torch.randn(5, 7)
        for i in range(12):
            s, y = torch.randn(5), torch.randn(5)
            s, y = double_damped(s, y, dense, ROOT)
            for secants in (dense, limited):
                secants.update(s, y, torch.zeros(5))
            alike = torch.allclose(dense.times(columns), limited.times(columns), rtol=1e-8)
            assert alike == (i < 8)
