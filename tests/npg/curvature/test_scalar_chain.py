"""A chain with one output: the same Jacobian as torch.func's, for every part of the parameters."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from npg.curvature import Jacobian
from npg.curvature.affine_chain import AffineChain
from npg.curvature.scalar_chain import ScalarChain


@pytest.mark.parametrize("used", [*[(i,) for i in range(5)], (1, 4), (0, 1, 2, 3, 4)])
def test_products_are_the_dense_jacobians(used: tuple[int, ...]) -> None:
    layers = [nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6, bias=False), nn.ReLU(), nn.Linear(6, 1)]
    model = nn.Sequential(*layers, nn.Tanh()).double()
    x = torch.randn(9, 5, dtype=torch.float64)
    named = list(model.named_parameters())
    chosen = {named[i][0]: named[i][1] for i in used}
    output = model(x)
    assert isinstance(AffineChain.recognise(output, list(chosen.values())), ScalarChain)
    blocks = jacrev(lambda p: functional_call(model, {**dict(named), **p}, (x,)))(chosen)
    dense = torch.cat([block.reshape(9, -1) for block in blocks.values()], dim=1).detach()
    jacobian = Jacobian([output], list(chosen.values()))
    vector, cotangent = torch.randn(dense.shape[1]).double(), torch.randn(9, 1).double()
    kept = cotangent.clone()
    for _ in range(2):  # the buffers are used again
        product = jacobian.jvp(vector)[0]
        torch.testing.assert_close(product[:, 0], dense @ vector, rtol=1e-8, atol=1e-10)
        transposed = dense.T @ cotangent[:, 0]
        torch.testing.assert_close(jacobian.vjp([cotangent]), transposed, rtol=1e-8, atol=1e-10)
    assert torch.equal(cotangent, kept)
