import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.curvature import CurvatureMatrix, GaussNewton, Hessian
from npg.curvature import batched as module
from npg.curvature.batched import vector_jacobian_products
from tests.npg.oracles import TIGHT, functional_jacobian, jacobian_by_rows, mlp, trained


class Stubborn(torch.autograd.Function):
    """Its backward pass reads a number of the host, which vmap does not allow."""

    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    def backward(ctx, g):
        return g * 3 if float(g.abs().sum()) >= 0 else g


@pytest.mark.parametrize("at_once", [1, 4, 64])
def test_many_vectors(at_once, monkeypatch):
    monkeypatch.setattr(module, "MOST_AT_ONCE", at_once)
    model, x = mlp(), torch.randn(5, 3)
    vectors = torch.randn(9, 15)
    found = vector_jacobian_products([model(x)], trained(model), vectors)
    torch.testing.assert_close(found, vectors @ functional_jacobian(model, x), **TIGHT)


def test_several_outputs_and_an_input_that_takes_no_part():
    model, x, idle = mlp(), torch.randn(5, 3), nn.Parameter(torch.ones(2))
    outputs = [model(x), model(x).sum(1)]
    vectors = torch.randn(3, 20)
    inputs = [*trained(model), idle]
    found = vector_jacobian_products(outputs, inputs, vectors)
    rows = torch.cat([jacobian_by_rows(output, inputs) for output in outputs])
    torch.testing.assert_close(found, vectors @ rows, **TIGHT)
    assert not found[:, -2:].any()


def test_an_input_that_takes_no_part_is_batched_with_the_others(monkeypatch):
    model, x, idle = mlp(), torch.randn(5, 3), nn.Parameter(torch.ones(2))
    passes, original = [], torch.autograd.grad

    def counted(*args, **options):
        passes.append(options["is_grads_batched"])
        return original(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    vector_jacobian_products([model(x)], [*trained(model), idle], torch.randn(9, 15))
    assert passes == [True]


@pytest.mark.parametrize("stubborn", [False, True])
def test_numbers_without_a_dimension(stubborn):
    """y = x² at x = 3, an output and an input of shape [], beside an input that takes no part."""
    x, idle = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.ones(2))
    output = Stubborn.apply(x.square()) / 3 if stubborn else x.square()
    found = vector_jacobian_products([output], [x, idle], torch.tensor([[1.0], [2.0]]))
    torch.testing.assert_close(found, torch.tensor([[6.0, 0.0, 0.0], [12.0, 0.0, 0.0]]))


def test_what_cannot_be_batched_is_done_one_by_one():
    model, x = mlp(), torch.randn(5, 3)
    vectors = torch.randn(4, 15)
    output = Stubborn.apply(model(x))
    found = vector_jacobian_products([output], trained(model), vectors)
    torch.testing.assert_close(found, 3 * vectors @ functional_jacobian(model, x), **TIGHT)


def test_a_graph_that_is_gone_is_an_error():
    model, x = mlp(), torch.randn(5, 3)
    output = model(x)
    output.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        vector_jacobian_products([output], trained(model), torch.eye(15))


@pytest.mark.parametrize("samples", [4, 40])  # fewer outputs than parameters, and more
def test_dense_matrices_are_their_columns(samples):
    model, x, y = mlp(), torch.randn(samples, 3), torch.randint(3, (samples,))
    for matrix in (
        Hessian(model, lambda: F.cross_entropy(model(x), y)),
        GaussNewton(model, lambda: model(x), lambda z: F.cross_entropy(z, y)),
    ):
        torch.testing.assert_close(matrix.to_dense(), CurvatureMatrix.to_dense(matrix), **TIGHT)
