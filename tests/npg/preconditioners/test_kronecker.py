"""Kronecker factors against curvlinops, and what they are for: fewer iterations."""

import pytest
import torch
from curvlinops import KFACInverseLinearOperator, KFACLinearOperator
from torch import nn
from torch.nn import functional as F

from npg.curvature import GaussNewton
from npg.errors import ConfigurationError
from npg.linalg import cg
from npg.preconditioners import KroneckerPreconditioner
from tests.npg.oracles import flat, mlp, trained


def value_network(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 6, bias), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)
    )


def curvature(model, x, y, parameters=None, loss=F.mse_loss) -> GaussNewton:
    return GaussNewton(model, lambda: model(x), lambda v: loss(v, y), parameters=parameters)


@pytest.mark.parametrize("damping", [1.0, 1e-2, 1e-5])
@pytest.mark.parametrize("bias", [True, False])
def test_is_the_inverse_that_curvlinops_forms(bias: bool, damping: float) -> None:
    """Its "type-2" factors of a one-output network are exact; its heuristic damping is π."""
    model, x, y = value_network(bias), torch.randn(40, 3), torch.randn(40, 1)
    factors = KFACLinearOperator(
        model,
        nn.MSELoss(),
        trained(model),
        [(x, y)],
        fisher_type="type-2",
        separate_weight_and_bias=False,
    )
    theirs = KFACInverseLinearOperator(factors, damping=damping, use_heuristic_damping=True)
    ours = KroneckerPreconditioner(curvature(model, x, y), damping)
    for vector in torch.randn(4, sum(p.numel() for p in model.parameters())):
        torch.testing.assert_close(ours(vector), theirs @ vector, rtol=1e-8, atol=1e-10)


def test_one_linear_layer_is_solved_exactly() -> None:
    """There S is a number: M is the damped matrix itself, but for the damping's factorisation."""
    model, x, y = nn.Linear(3, 1), torch.randn(40, 3), torch.randn(40, 1)
    matrix = curvature(model, x, y)
    solved = KroneckerPreconditioner(matrix, 1e-12)(torch.ones(4))
    expected = torch.linalg.solve(matrix.to_dense(), torch.ones(4))
    torch.testing.assert_close(solved, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["weights", "biases", "one layer"])
def test_a_part_of_the_parameters_has_the_part_of_the_factors(which: str) -> None:
    model, x, y = value_network(), torch.randn(40, 3), torch.randn(40, 1)
    wanted = {
        "weights": [p for p in model.parameters() if p.ndim == 2],
        "biases": [p for p in model.parameters() if p.ndim == 1],
        "one layer": list(model[2].parameters()),
    }[which]
    matrix = curvature(model, x, y, wanted)
    damping = 0.3
    inverse = KroneckerPreconditioner(matrix, damping)
    found = torch.stack([inverse(row) for row in torch.eye(matrix.shape[0])])
    torch.testing.assert_close(found, found.T)
    assert torch.linalg.eigvalsh(found).min() > 0
    blocks = []
    for layer, below in [(model[0], model[:0]), (model[2], model[:2]), (model[4], model[:4])]:
        mine = [p for p in layer.parameters() if any(p is w for w in wanted)]
        if not mine:
            continue
        seen = below(x)
        inputs = torch.cat(
            ([seen] if any(p.ndim == 2 for p in mine) else [])
            + ([torch.ones(40, 1)] if any(p.ndim == 1 for p in mine) else []),
            1,
        )
        probe = layer(seen).detach().requires_grad_()
        rest = model[list(model).index(layer) + 1 :]
        (signal,) = torch.autograd.grad(rest(probe).sum(), probe)
        a, s = inputs.T @ inputs / 40, 2 / 40 * signal.T @ signal
        pi = ((a.trace() / len(a)) / (s.trace() / len(s))).sqrt()
        a = a + pi * damping**0.5 * torch.eye(len(a))
        s = s + damping**0.5 / pi * torch.eye(len(s))
        blocks.append((mine, torch.linalg.inv(torch.kron(s, a))))
    vector = torch.randn(matrix.shape[0])
    pieces = dict(zip(map(id, wanted), vector.split([p.numel() for p in wanted]), strict=True))
    expected = {}
    for mine, block in blocks:
        rows = [pieces[id(p)].view(p.shape[0], -1) for p in mine]
        solved = (block @ torch.cat(rows, 1).flatten()).view(rows[0].shape[0], -1)
        for p, column in zip(mine, solved.split([r.shape[1] for r in rows], 1), strict=True):
            expected[id(p)] = column.reshape(-1)
    torch.testing.assert_close(inverse(vector), flat([expected[id(p)] for p in wanted]))


def test_few_iterations_go_further() -> None:
    """3 of them lower the quadratic more than 6 without, and both find the same minimum."""
    model = nn.Sequential(
        nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )
    x = torch.randn(400, 6) * torch.logspace(-1, 1, 6)
    matrix, damping = curvature(model, x, torch.randn(400, 1)), 1e-3
    b = matrix.gradient()
    inverse = KroneckerPreconditioner(matrix, damping)

    def lowest(iterations: int, preconditioner=None) -> float:
        found = cg(matrix + damping, b, preconditioner=preconditioner, max_iterations=iterations)
        return float(-0.5 * found.x @ (b + found.residual))

    assert lowest(3, inverse) < lowest(6) < 0
    assert lowest(2000, inverse) == pytest.approx(lowest(2000), rel=1e-4)


def test_is_positive_definite_where_the_factors_are_not() -> None:
    """Dead units have no signal at all, and 5 samples no full rank."""
    model = value_network()
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    x, y = torch.randn(5, 3), torch.randn(5, 1)
    for parameters in (torch.float64, torch.float32):
        model.to(parameters)
        matrix = curvature(model, x.to(parameters), y.to(parameters))
        inverse = KroneckerPreconditioner(matrix, 1e-6)
        v = torch.randn(matrix.shape[0], dtype=parameters)
        assert torch.isfinite(inverse(v)).all()
        assert v @ inverse(v) > 0


def test_losses_that_couple_samples_or_curve_down_keep_it_positive() -> None:
    model, x, y = value_network(), torch.randn(30, 3), torch.randn(30, 1)
    for loss in (lambda v, _: v.var(), lambda v, _: -v.square().mean(), lambda v, _: v.mean()):
        matrix = curvature(model, x, y, loss=loss)
        inverse = KroneckerPreconditioner(matrix, 0.1)
        found = torch.stack([inverse(row) for row in torch.eye(matrix.shape[0])])
        torch.testing.assert_close(found, found.T)
        # Nothing of a curvature that is not there is left: λ alone, whatever its factorisation.
        torch.testing.assert_close(found, torch.eye(matrix.shape[0]) / 0.1, rtol=1e-4, atol=1e-4)


def test_parameters_outside_the_chain_have_the_damping_alone() -> None:
    model, x, y = value_network(), torch.randn(30, 3), torch.randn(30, 1)
    other = nn.Parameter(torch.ones(4))
    matrix = GaussNewton([*model.parameters(), other], lambda: model(x), lambda v: F.mse_loss(v, y))
    v = torch.randn(matrix.shape[0])
    torch.testing.assert_close(KroneckerPreconditioner(matrix, 0.1)(v)[-4:], v[-4:] / 0.1)


def test_another_matrix_and_no_damping_are_refused() -> None:
    x = torch.randn(9, 3)
    with pytest.raises(ConfigurationError, match="one output"):
        KroneckerPreconditioner(curvature(mlp(), x, torch.randn(9, 3)), 0.1)
    with pytest.raises(ConfigurationError, match="damping must be positive"):
        KroneckerPreconditioner(curvature(value_network(), x, torch.randn(9, 1)), 0.0)


def test_applies_to_chains_with_one_output_only() -> None:
    x, y = torch.randn(9, 3), torch.randn(9, 1)
    assert KroneckerPreconditioner.applies(curvature(value_network(), x, y))
    assert not KroneckerPreconditioner.applies(curvature(mlp(), x, torch.randn(9, 3)))
    normed = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    assert not KroneckerPreconditioner.applies(curvature(normed, x, y))
