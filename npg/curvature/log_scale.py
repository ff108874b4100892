"""Jacobian products of a scale exp(p) that all samples share, written by hand.

A Gaussian policy usually has one such parameter per action. It is a few numbers, but two passes
over its graph take as long as a layer's matrix product.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from npg.curvature.chain_operations import ACCUMULATE


class LogScale:
    """Jacobian rows of one output s = c ⊙ exp(p), p broadcast: ṡ = s ⊙ ṗ.

    Args:
        output: s, of any shape.
        position: Where p is among the parameters.
    """

    def __init__(self, output: Tensor, position: int) -> None:
        self.output = output.detach().clone()  # its owner may write to it
        self.position = position

    @classmethod
    def recognise(cls, output: Tensor, parameters: Sequence[Tensor]) -> "LogScale | None":
        """Reads ``constant * parameter.exp()`` off the output's graph, expanded at any point.

        Args:
            output: Tensor with a graph.
            parameters: What to differentiate with respect to.

        Returns:
            The block; or None if the graph is anything else.
        """
        if output._version:  # written to since: no longer what its graph says
            return None
        index = {id(parameter): i for i, parameter in enumerate(parameters)}
        node: Any = output.grad_fn
        exponentials = 0
        while node is not None and node.name() != ACCUMULATE:
            name = node.name()
            below = [following for following, _ in node.next_functions if following is not None]
            constant_factor = name == "MulBackward0" and not exponentials
            if name == "ExpBackward0":
                exponentials += 1
            elif name != "ExpandBackward0" and not constant_factor:
                return None
            if len(below) != 1:
                return None
            node = below[0]
        if node is None or exponentials != 1 or id(node.variable) not in index:
            return None
        return cls(output, index[id(node.variable)])

    def jvp(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """Returns [J v], from one tensor per parameter."""
        return [self.output * pieces[self.position]]

    def add_vjp(self, cotangents: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Adds Jᵀu to one tensor per parameter."""
        (cotangent,) = cotangents
        received = into[self.position]
        received.add_((cotangent * self.output).sum_to_size(received.shape))
