"""The compact form of BFGS's inverse against the two-loop recursion."""

import pytest
import torch

from npg.linalg.compact_bfgs import compact_bfgs
from npg.linalg.quasi_newton import bfgs_inverse, two_loop


def pairs(*shape):
    """With sᵀy > 0, and as alike as averages over ten batches are."""
    s, y = torch.randn(shape), torch.randn(shape)
    for i in range(1, shape[-2]):
        s[..., i, :] = 0.9 * s[..., i - 1, :] + 0.1 * s[..., i, :]
    return s, s + 0.1 * y * s


@pytest.mark.parametrize("groups", [(), (2,)])
@pytest.mark.parametrize("memory", [0, 1, 5, 12])
def test_equals_the_recursion_for_every_column(groups, memory):
    s, y = pairs(*groups, memory, 7)
    columns = torch.randn(*groups, 7, 4)
    start = torch.full((*groups, 7), 0.3)
    expected = torch.stack(
        [two_loop(column, s.unbind(-2), y.unbind(-2), scale=0.3) for column in columns.unbind(-1)],
        -1,
    )
    torch.testing.assert_close(compact_bfgs(columns, s, y, start), expected)


def test_begins_with_any_diagonal():
    s, y = pairs(6, 5)
    start = torch.rand(5) + 0.1
    h = start.diag_embed()
    for one, other in zip(s, y, strict=True):
        h = bfgs_inverse(h, one, other)
    torch.testing.assert_close(compact_bfgs(torch.eye(5), s, y, start), h)


def test_single_precision_keeps_its_digits():
    s, y = pairs(100, 40)
    columns, start = torch.randn(40, 3), torch.ones(40)
    exact = compact_bfgs(columns, s, y, start)
    rough = compact_bfgs(columns.float(), s.float(), y.float(), start.float())
    assert rough.dtype == torch.float32
    assert float((rough - exact).norm() / exact.norm()) < 1e-3
