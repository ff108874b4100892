import pytest
import torch
from curvlinops import HessianLinearOperator
from torch import nn
from torch.nn import functional as F

from npg.curvature import Hessian, math_attention
from tests.npg.oracles import CASES, TIGHT, flat, functional_hessian, mlp, trained


# torch 2.13's second derivative of the fused weight_norm is wrong (it is not even symmetric).
@pytest.fixture(params=sorted(set(CASES) - {"weight norm"}))
def case(request):
    return CASES[request.param]


def smooth(output):
    return (output - 0.3).pow(3).sum() / 5 + output.logsumexp(-1).mean()


def test_every_model(case):
    model, x = case.make()
    found = Hessian(model, lambda: smooth(model(x))).to_dense()
    if case.functional:
        expected = functional_hessian(model, x, smooth)
    else:
        with math_attention():
            loss = smooth(model(x))
        parameters = trained(model)
        gradient = flat(torch.autograd.grad(loss, parameters, create_graph=True))
        rows = [
            flat(torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True))
            for g in gradient
        ]
        expected = torch.stack(rows)
    torch.testing.assert_close(found, expected, **TIGHT)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss])
def test_curvlinops_agrees(loss, reduction):
    model, x, y = mlp(), torch.randn(7, 3), torch.rand(7, 3)
    if loss is nn.CrossEntropyLoss:
        y = y.argmax(1)
    function = loss(reduction=reduction)
    theirs = HessianLinearOperator(model, function, trained(model), [(x, y)]) @ torch.eye(59)
    found = Hessian(model, lambda: function(model(x), y)).to_dense()
    torch.testing.assert_close(found, theirs, **TIGHT)


def test_a_quadratic():
    """½xᵀAx + bᵀx has the Hessian A, and a linear loss none."""
    a = torch.tensor([[2.0, 1.0], [1.0, -3.0]])
    x = nn.Parameter(torch.randn(2))
    torch.testing.assert_close(Hessian([x], lambda: 0.5 * x @ a @ x + x.sum()).to_dense(), a)
    assert not Hessian([x], lambda: x.sum()).to_dense().any()


def test_linear_in_one_parameter_only():
    x, y = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))
    found = Hessian([x, y], lambda: x**3 + 2 * y).to_dense()
    torch.testing.assert_close(found, torch.tensor([[12.0, 0.0], [0.0, 0.0]]))


def test_under_no_grad_and_without_a_trace():
    model, x = mlp(), torch.randn(5, 3)
    with torch.no_grad():
        hessian = Hessian(model, lambda: F.mse_loss(model(x), x))
        product = hessian @ torch.ones(59)
    assert not product.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_part_of_the_parameters():
    model, x = mlp(), torch.randn(5, 3)
    full = Hessian(model, lambda: smooth(model(x))).to_dense()
    part = Hessian(model, lambda: smooth(model(x)), parameters=[model[0].weight, model[4].bias])
    index = [*range(12), 56, 57, 58]
    torch.testing.assert_close(part.to_dense(), full[index][:, index], **TIGHT)
