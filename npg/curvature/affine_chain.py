"""Jacobian products of a chain of affine layers and activations, written by hand.

A policy or value network is usually such a chain. The graph that autograd recorded tells: its
nodes from the output down are ``addmm, tanh, addmm, …`` or ``addmm, view, relu, convolution, …``,
and they hold what the layers saw. So any code that computes a chain is recognised, whatever its
modules are called, and anything else is left to the general path.

Tangents run upward, ż = a Ẇᵀ + ȧ Wᵀ + ḃ and ȧ = φ' ⊙ ż; cotangents run downward, W̄ = δᵀ a,
b̄ = Σ δ, then δ W and φ' ⊙ δ. How each operation does that is in
:mod:`npg.curvature.chain_operations`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from npg.curvature.chain_operations import (
    READERS,
    Affine,
    Elementwise,
    LogSoftmax,
    Operation,
    Parametric,
)
from npg.curvature.scalar_chain import ScalarChain


class AffineChain:
    """Jacobian rows of one output tensor of a chain.

    Args:
        operations: From the input up, the first of them a layer with parameters.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = list(operations)
        # Fresh results of several megabytes would cost as much in page faults as the products do:
        # what an affine layer makes goes where the next one above will put its cotangents.
        buffer: Tensor | None = None
        for operation in reversed(self.operations):
            if isinstance(operation, Affine):
                operation.out = buffer
                buffer = torch.empty_like(operation.inputs)
                operation.below = buffer
            elif isinstance(operation, Parametric) or operation.reshapes:
                buffer = None

    @classmethod
    def recognise(
        cls, output: Tensor, parameters: Sequence[Tensor], rows: int | None = None
    ) -> "AffineChain | ScalarChain | None":
        """Reads a chain off the output's graph.

        Args:
            output: Tensor with a graph.
            parameters: What to differentiate with respect to.
            rows: Restricts it to the first so many entries of the batch. Default: all.

        Returns:
            The chain, in the cheaper form where it has one output; or None if the graph is
            anything else: another operation, a weight used twice, a frozen or reparametrised
            weight below a trained one.
        """
        index = {id(parameter): i for i, parameter in enumerate(parameters)}
        operations: list[Operation] = []
        node, shape = output.grad_fn, output.shape
        if node is not None and node.name() == "SubBackward0":
            softmax, node = LogSoftmax.read(node, output)
            if softmax is None:
                return None
            operations.append(softmax)
        while node is not None:
            if node.name() == "CloneBackward0":  # a copy changes nothing
                node = node.next_functions[0][0]
                continue
            reader = READERS.get(node.name())
            found = None if reader is None else reader(node, shape, index)
            if found is None:
                return None
            operation, node, shape = found
            if isinstance(operation, Elementwise) and not operations:
                operation.value = operation.value.clone()  # the output: its owner may write to it
            operations.append(operation)
        layers = [operation for operation in operations if isinstance(operation, Parametric)]
        used = [i for layer in layers for i in (layer.weight, layer.bias) if i is not None]
        if not used or len(set(used)) < len(used):
            return None
        if rows is not None and not all(operation.keep(rows) for operation in operations):
            return None
        operations.reverse()
        if ScalarChain.applies(operations, output):
            return ScalarChain(operations)
        return cls(operations)

    def jvp(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """Returns [J v], from one tensor per parameter."""
        tangent: Tensor | None = None
        for operation in self.operations:
            tangent = operation.jvp(tangent, pieces)
        assert tangent is not None  # recognise() demands a used parameter
        return [tangent]

    def add_vjp(self, cotangents: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Adds Jᵀu to one tensor per parameter."""
        (cotangent,) = cotangents
        if not isinstance(self.operations[-1], (Parametric, LogSoftmax)):
            cotangent = cotangent.clone()  # activations work in place
        for operation in reversed(self.operations[1:]):
            cotangent = operation.vjp(cotangent, into)
        first = self.operations[0]
        assert isinstance(first, Parametric)  # recognise() ends with one
        first.add_vjp(cotangent, into)
