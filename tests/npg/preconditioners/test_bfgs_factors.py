"""K-BFGS's factors: double damping, and both inverses, against NumPy."""

import copy
import math

import numpy as np
import torch

from npg.curvature.kronecker.means import Means
from npg.preconditioners.bfgs_factors import InputInverse, OutputInverse, double_damped
from npg.preconditioners.secants import DenseSecants

ROOT = math.sqrt(0.3)


def bfgs_oracle(h, s, y):
    """(I − s yᵀ/sᵀy) H (I − y sᵀ/sᵀy) + s sᵀ/sᵀy, written out in NumPy."""
    h, s, y = (t.detach().numpy() for t in (h, s, y))
    left = np.eye(len(s)) - np.outer(s, y) / (s @ y)
    return torch.from_numpy(left @ h @ left.T + np.outer(s, s) / (s @ y))


class TestDamping:
    def test_powells_stage(self):
        """H = 2I, s = (1, 0), y = (1, 2): sᵀy = 1, yᵀHy = 10, and 1 < 0.2 · 10.

        θ = 0.8 · 10 / (10 − 1) = 8/9, s̃ = 8/9 (1, 0) + 1/9 (2, 4) = (10/9, 4/9), and
        s̃ᵀy = 18/9 = 2 = 0.2 · 10. With ε = 0.5: s̃ᵀs̃ = 116/81, 2 ≥ 0.5 · 116/81, so that y stays.
        """
        h = DenseSecants(2 * torch.eye(2))
        s, y = double_damped(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0]), h, 0.5)
        torch.testing.assert_close(s, torch.tensor([10 / 9, 4 / 9]))
        torch.testing.assert_close(y, torch.tensor([1.0, 2.0]))

    def test_the_second_stage(self):
        """H = I/4, s = (2, 0), y = (0.2, 0): sᵀy = 0.4 ≥ 0.2 yᵀHy = 0.002, so that s stays.

        With ε = 0.5, sᵀy = 0.4 < 0.5 · 4: θ = 0.5 · 4 / (4 − 0.4) = 5/9 and
        ỹ = 5/9 (0.2, 0) + 4/9 (2, 0) = (1, 0), with sᵀỹ = 2 = 0.5 · 4.
        """
        h = DenseSecants(torch.eye(2) / 4)
        s, y = double_damped(torch.tensor([2.0, 0.0]), torch.tensor([0.2, 0.0]), h, 0.5)
        torch.testing.assert_close(s, torch.tensor([2.0, 0.0]))
        torch.testing.assert_close(y, torch.tensor([1.0, 0.0]))

    def test_both_stages(self):
        """H = I, s = (1, 0), y = (−1, 0): sᵀy = −1 < 0.2 yᵀHy = 0.2.

        θ = 0.8 · 1 / (1 + 1) = 0.4, s̃ = 0.4 (1, 0) + 0.6 (−1, 0) = (−0.2, 0): s is turned round, by
        adding (1 − θ) H y; subtracting it would give (1, 0), sᵀy = −1. With ε = 6, which no λ below
        1 has: s̃ᵀy = 0.2 < 6 · 0.04 = 0.24, θ = −5 · 0.04 / (0.04 − 0.2) = 1.25 and
        ỹ = 1.25 (−1, 0) − 0.25 (−0.2, 0) = (−1.2, 0), with s̃ᵀỹ = 0.24.
        """
        h = DenseSecants(torch.eye(2))
        s, y = double_damped(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0]), h, 6.0)
        torch.testing.assert_close(s, torch.tensor([-0.2, 0.0]))
        torch.testing.assert_close(y, torch.tensor([-1.2, 0.0]))

    def test_the_curvature_is_positive_whatever_the_pair(self):
        h = DenseSecants(torch.eye(6))
        for _ in range(200):
            s, y = torch.randn(6), 10 * torch.randn(6)
            s, y = double_damped(s, y, h, ROOT)
            assert float(s @ y) >= ROOT * float(s @ s) * (1 - 1e-9) > 0
            h.update(s, y, torch.zeros(6))
            assert float(torch.linalg.eigvalsh(h.matrix).min()) > 0


class TestOutputInverse:
    @staticmethod
    def pair(outputs, signals):
        zero = torch.zeros(len(outputs))
        return Means(zero, zero), Means(-outputs, -signals)

    def test_the_matrix_itself_changes_to_the_oracles(self):
        """A reference symmetrises into a new tensor first, and updates that one."""
        inverse = OutputInverse(DenseSecants(torch.eye(3)), torch.zeros(3), decay=0.9)
        matrix = inverse.secants.matrix
        h, mean_s, mean_y = torch.eye(3), torch.zeros(3), torch.zeros(3)
        curvature = torch.diag(torch.tensor([1.0, 2.0, 4.0]))
        for _ in range(5):
            s = torch.randn(3)
            mean_s, mean_y = 0.9 * mean_s + 0.1 * s, 0.9 * mean_y + 0.1 * curvature @ s
            inverse.update(*self.pair(s, curvature @ s), ROOT)
            damped = double_damped(mean_s, mean_y, DenseSecants(h), ROOT)
            h = bfgs_oracle(h, *damped)
            assert inverse.secants.matrix is matrix
            torch.testing.assert_close(matrix, h)
        assert float((matrix - torch.eye(3)).abs().max()) > 0.1

    def test_it_finds_an_inverse(self):
        curvature = torch.diag(torch.tensor([1.0, 2.0, 4.0]))
        inverse = OutputInverse(DenseSecants(torch.eye(3)), torch.zeros(3), decay=0.0)
        for _ in range(100):
            s = torch.randn(3)
            inverse.update(*self.pair(s, curvature @ s), ROOT)
        torch.testing.assert_close(
            inverse.secants.matrix, curvature.inverse(), rtol=1e-6, atol=1e-6
        )


class TestInputInverse:
    def test_against_the_oracle(self):
        """(A₀ + √λ I)⁻¹ first, then BFGS along H ā with A's running mean, batch by batch."""
        inverse, moment, h = None, None, None
        for k in range(1, 30):
            rows = torch.randn(8, 4).relu() + 0.1
            mean, batch = rows.mean(0), rows.T @ rows / 8
            means = Means(torch.zeros(2), torch.zeros(2), mean, batch)
            if inverse is None:
                inverse = InputInverse.begin(means, ROOT, decay=0.9)
                moment, h = batch.clone(), torch.linalg.inv(batch + ROOT * torch.eye(4))
            else:
                inverse.update(means, ROOT)
                weight = max(1 / k, 0.1)
                moment = (1 - weight) * moment + weight * batch
                s = h @ mean
                h = bfgs_oracle(h, s, moment @ s + ROOT * s)
            torch.testing.assert_close(inverse.moment, moment)
            torch.testing.assert_close(inverse.secants.matrix, h)

    def test_one_batch_again_changes_nothing(self):
        """H (A + √λ I) s = s is what it begins with."""
        rows = torch.randn(8, 4)
        means = Means(torch.zeros(2), torch.zeros(2), rows.mean(0), rows.T @ rows / 8)
        inverse = InputInverse.begin(copy.deepcopy(means), ROOT, decay=0.9)
        before = inverse.secants.matrix.clone()
        inverse.update(means, ROOT)
        torch.testing.assert_close(inverse.secants.matrix, before)
