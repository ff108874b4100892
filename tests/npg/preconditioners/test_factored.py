import pytest
import torch
from torch import nn
from torch.distributions import Categorical

from npg.curvature import Fisher
from npg.curvature.kronecker import KroneckerFisher
from npg.linalg import cg
from npg.preconditioners import FactoredInverse, KroneckerInverse

DAMPING = 0.01


@pytest.fixture
def system():
    """A damped Fisher system whose exact matrix is badly conditioned, and its factors."""
    torch.set_default_dtype(torch.float64)
    try:
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        x = torch.randn(200, 6) * torch.tensor([10.0, 5.0, 2.0, 1.0, 0.5, 0.1])
    finally:
        torch.set_default_dtype(torch.float32)
    factors = KroneckerFisher(model, family="categorical", kind="exact")
    logits = model(x)
    logits.sum().backward()
    factors.update(0.0)
    inverse = KroneckerInverse(factors.blocks)
    inverse.refresh(DAMPING)
    matrix = Fisher(model, lambda: Categorical(logits=model(x)))
    b = torch.randn(matrix.shape[0], dtype=torch.float64)
    return matrix, FactoredInverse(inverse, list(model.parameters())), b


def test_is_symmetric_and_positive(system):
    """What conjugate gradient asks of a preconditioner."""
    _, inverse, b = system
    dense = torch.stack([inverse(e) for e in torch.eye(len(b), dtype=b.dtype)])
    assert torch.allclose(dense, dense.T, atol=1e-10)
    assert float(torch.linalg.eigvalsh(dense)[0]) > 0


def test_conjugate_gradient_finds_the_same_solution_and_is_near_it_sooner(system):
    matrix, inverse, b = system
    damped = matrix.to_dense() + DAMPING * torch.eye(len(b), dtype=b.dtype)
    exact = torch.linalg.solve(damped, b)

    def error(iterations, preconditioner):
        x = cg(
            matrix + DAMPING,
            b,
            preconditioner=preconditioner,
            max_iterations=iterations,
            tolerance=1e-10,
        ).x
        return float((x - exact) @ damped @ (x - exact))

    assert error(500, inverse) < 1e-12 * float(exact @ damped @ exact)
    assert error(5, inverse) < 0.5 * error(5, None)


def test_the_quadratic_and_the_residual_are_those_of_the_exact_matrix(system):
    matrix, inverse, b = system
    solution = inverse.solve(matrix, DAMPING, b)
    dense = matrix.to_dense()
    x = inverse(b)
    assert torch.equal(solution.x, x)
    assert solution.quadratic == pytest.approx(float(x @ dense @ x))
    residual = b - dense @ x - DAMPING * x
    assert solution.residual == pytest.approx(float(residual.norm() / b.norm()))
