"""Full-matrix Adagrad against SciPy's roots, formed and not."""

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power
from torch import nn

from npg.errors import ConfigurationError
from npg.optim import FullMatrixAdagrad, Shampoo
from tests.npg.oracles import TIGHT


def drive(optimizer, parameters, steps, seed=0):
    draws = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=draws)
        optimizer.step()


@pytest.mark.parametrize("memory", [None, 50, 4])
def test_is_scipys(memory):
    """The sum is over all gradients, or the last four; two parameters are one vector."""
    eps, lr = 1e-3, 0.1
    parameters = [nn.Parameter(torch.randn(s)) for s in ((2, 2), (3,))]
    x = np.concatenate([p.detach().flatten().numpy() for p in parameters])
    optimizer = FullMatrixAdagrad(parameters, lr, eps, memory)
    history = []
    for _ in range(9):
        for p in parameters:
            p.grad = torch.randn(p.shape)
        history.append(np.concatenate([p.grad.flatten().numpy() for p in parameters]))
        optimizer.step()
        counted = history if memory is None else history[-memory:]
        moment = sum(np.outer(g, g) for g in counted) + eps * np.eye(7)
        x = x - lr * fractional_matrix_power(moment, -0.5) @ history[-1]
        found = torch.cat([p.detach().flatten() for p in parameters]).numpy()
        np.testing.assert_allclose(found, x, rtol=1e-8, atol=1e-10)


def test_is_shampoo_of_a_vector():
    """Order 1: G Gᵀ to the power −1/2, which is −1/(2k) at k = 1."""
    p, q = (nn.Parameter(torch.ones(6)) for _ in range(2))
    one = FullMatrixAdagrad([p], 0.1, 1e-6, memory=None)
    two = Shampoo([q], 0.1, (0.0, 1.0), 1e-6, graft=None, root_interval=1)
    drive(one, [p], 8)
    drive(two, [q], 8)
    torch.testing.assert_close(p, q, **TIGHT)


def test_a_new_direction_gets_a_step_of_the_rate():
    p = nn.Parameter(torch.zeros(1000, dtype=torch.float32))
    optimizer = FullMatrixAdagrad([p], 0.25)
    for scale in (1e-2, 1e3):
        before = p.detach().clone()
        p.grad = scale * torch.randn(1000, dtype=torch.float32)
        optimizer.step()
        assert float((p.detach() - before).norm()) == pytest.approx(0.25, rel=0.1)


def test_equal_gradients_shrink_as_in_adagrad():
    """t equal gradients: the step is η / √t, in single precision as well."""
    g = torch.randn(50, dtype=torch.float32)
    p = nn.Parameter(torch.zeros(50, dtype=torch.float32))
    optimizer = FullMatrixAdagrad([p], 1.0, memory=20)
    for t in range(1, 21):
        before = p.detach().clone()
        p.grad = g.clone()
        optimizer.step()
        assert float((p.detach() - before).norm()) == pytest.approx(t**-0.5, rel=1e-3)


def test_nearly_equal_gradients_make_no_long_steps():
    """What rounding leaves of their products is not taken for a direction of its own."""
    torch.manual_seed(3)
    base = 100 * torch.randn(2000, dtype=torch.float32)
    p = nn.Parameter(torch.zeros(2000, dtype=torch.float32))
    optimizer = FullMatrixAdagrad([p], 1.0, eps=1e-12)
    for _ in range(60):
        before = p.detach().clone()
        p.grad = base + 1e-5 * torch.randn(2000, dtype=torch.float32)
        optimizer.step()
        assert float((p.detach() - before).norm()) < 1.5


def test_missing_gradients_count_as_zero_and_stay():
    first, late = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = FullMatrixAdagrad([first, late], 0.1)
    first.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(late, torch.ones(2))
    late.grad = torch.ones(2)
    optimizer.step()
    assert bool((late < 1).all())


def test_what_is_too_large_or_too_few():
    p = nn.Parameter(torch.zeros(20_001))
    p.grad = torch.zeros_like(p)
    with pytest.raises(ConfigurationError, match="memory="):
        FullMatrixAdagrad([p], memory=None).step()
    with pytest.raises(ConfigurationError, match="memory must be at least 1"):
        FullMatrixAdagrad([p], memory=0)
