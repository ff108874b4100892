"""A scale that samples share: torch.func's Jacobian where it is recognised, the graph elsewhere."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev

from npg.curvature import Jacobian
from npg.curvature.jacobian import GraphBlock
from npg.curvature.log_scale import LogScale

ONES = torch.ones(5, 3).double()
FACTORS = torch.linspace(-2, 3, 15).double().reshape(5, 3)
KNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "Stable-Baselines3's": lambda p: ONES * p.exp(),
    "expanded": lambda p: p.exp().expand(5, 3),
    "expanded first": lambda p: p.expand(5, 3).exp(),
    "a factor each": lambda p: p.exp() * FACTORS,
    "a number": lambda p: 2.0 * (p.exp() * -3.0),
    "as it is": lambda p: p.exp(),
}
OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "a factor inside": lambda p: (2 * p).exp().expand(5, 3),
    "twice": lambda p: p.exp().exp().expand(5, 3),
    "with itself": lambda p: p.exp() * p.exp(),
    "with the parameter": lambda p: p * p.exp(),
    "softplus": lambda p: nn.functional.softplus(p).expand(5, 3),
    "clamped": lambda p: p.clamp(-1, 1).exp(),
    "no exponential": lambda p: ONES * p,
}


@pytest.fixture
def parameters() -> list[nn.Parameter]:
    sizes = ((2, 2), (3,))
    return [nn.Parameter(torch.randn(size, dtype=torch.float64)) for size in sizes]


@pytest.mark.parametrize("name", [*KNOWN, *OTHER])
def test_products_are_the_dense_jacobians(name: str, parameters: list[nn.Parameter]) -> None:
    function = {**KNOWN, **OTHER}[name]
    output = function(parameters[1])
    assert (LogScale.recognise(output, parameters) is not None) == (name in KNOWN)
    dense = jacrev(function)(parameters[1].detach()).reshape(-1, 3)
    jacobian = Jacobian([output], parameters)
    assert isinstance(jacobian.blocks[0][0], LogScale if name in KNOWN else GraphBlock)
    v, u = torch.randn(7).double(), torch.randn(output.shape).double()
    if name == "as it is":
        with torch.no_grad():  # products belong to the recorded point
            output.zero_()
    torch.testing.assert_close(jacobian.jvp(v)[0].flatten(), dense @ v[4:])
    product = jacobian.vjp([u])
    torch.testing.assert_close(product[4:], dense.T @ u.flatten())
    assert not product[:4].any()


def test_another_parameter_is_left_to_the_graph(parameters: list[nn.Parameter]) -> None:
    assert LogScale.recognise(parameters[1].exp(), parameters[:1]) is None


def test_an_output_that_was_written_to_is_left_to_the_graph(
    parameters: list[nn.Parameter],
) -> None:
    output = ONES * parameters[1].exp()
    with torch.no_grad():
        output.clamp_(max=0.5)
    assert LogScale.recognise(output, parameters) is None
