import pytest
import torch
from scipy.linalg import fractional_matrix_power

from npg.linalg.matrix_roots import inverse_root

N = 12


def matrices():
    wide, narrow = torch.randn(N, 3 * N), torch.randn(N, 2)
    return {
        "well-conditioned": wide @ wide.T / (3 * N) + torch.eye(N),
        "rank-deficient": narrow @ narrow.T,
        "tridiagonal": 2 * torch.eye(N) - torch.diag(torch.ones(N - 1), 1)
        - torch.diag(torch.ones(N - 1), -1),
        "identity": torch.eye(N),
        "zero": torch.zeros(N, N),
    }  # fmt: skip


@pytest.mark.parametrize("order", [1, 2, 4, 8])
@pytest.mark.parametrize("name", matrices())
def test_is_scipys_fractional_power(name, order):
    matrix, epsilon = matrices()[name], 1e-3
    root, report = inverse_root(matrix, order, epsilon)
    assert not report.failed
    damped = matrix + epsilon * torch.eye(N)
    power = fractional_matrix_power(damped.numpy(), -1 / order)
    wanted = torch.from_numpy(power.real.copy())  # it may have an imaginary part by rounding
    torch.testing.assert_close(root, wanted, rtol=1e-6, atol=1e-6)


def test_stacks_are_taken_one_by_one():
    stack = torch.stack(list(matrices().values()))
    roots, _ = inverse_root(stack, 4, 1e-2)
    for root, matrix in zip(roots, stack, strict=True):
        torch.testing.assert_close(root, inverse_root(matrix, 4, 1e-2)[0])


def test_singular_without_damping():
    root, report = inverse_root(matrices()["zero"], 2, 0.0)
    assert root is None
    assert report.failed
