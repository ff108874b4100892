"""Jacobian products of a fully connected chain with one output, at half the usual cost.

With one output per sample, ∂v/∂W_l of a sample is δ_l a_lᵀ, where the signal δ_l that reaches layer
l does not depend on the vector multiplied: it is computed once. Then J v and Jᵀu each take one
matrix product per layer, instead of the two that carrying a tangent or cotangent along needs:

    (J v)_n = Σ_l δ_l,n · (V_l a_l,n + b_l),    (Jᵀu)_l = (u ⊙ δ_l)ᵀ a_l.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from npg.curvature.chain_operations import Affine, Elementwise, Operation


class ScalarChain:
    """Jacobian rows of one output tensor [N, 1].

    Args:
        operations: Affine layers and activations, from the input up.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.layers: list[Affine] = []
        self.signals: list[Tensor] = []
        last = next(o for o in reversed(operations) if isinstance(o, Affine))
        signal = last.inputs.new_ones(len(last.inputs), 1)
        for operation in reversed(operations):
            if isinstance(operation, Elementwise):
                signal = operation.times_derivative(signal)
            elif isinstance(operation, Affine):
                self.layers.append(operation)
                self.signals.append(signal)
                signal = signal @ operation.weight_value
        # One scratch for all layers: what stays in the cache need not be fetched.
        scratch = signal.new_empty(max(map(Tensor.numel, self.signals)))
        self.products = [scratch[: each.numel()].view_as(each) for each in self.signals]

    @staticmethod
    def applies(operations: Sequence[Operation], output: Tensor) -> bool:
        """Whether a chain has one output and nothing but affine layers and activations."""
        return (
            output.ndim == 2
            and output.shape[1] == 1
            and all(isinstance(operation, (Affine, Elementwise)) for operation in operations)
        )

    def jvp(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """Returns [J v], from one tensor per parameter."""
        total = self.signals[0].new_zeros(len(self.signals[0]))
        for layer, signal, product in zip(self.layers, self.signals, self.products, strict=True):
            bias = None if layer.bias is None else pieces[layer.bias]
            if layer.weight is not None:
                weight = pieces[layer.weight].T
                if bias is None:
                    torch.mm(layer.inputs, weight, out=product)
                else:
                    torch.addmm(bias, layer.inputs, weight, out=product)
                total += product.mul_(signal).sum(1)
            elif bias is not None:
                total += signal @ bias
        return [total.unsqueeze(1)]

    def add_vjp(self, cotangents: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Adds Jᵀu to one tensor per parameter."""
        (cotangent,) = cotangents
        for layer, signal, product in zip(self.layers, self.signals, self.products, strict=True):
            if layer.weight is None and layer.bias is None:
                continue
            weighted = torch.mul(signal, cotangent, out=product)
            if layer.weight is not None:
                into[layer.weight].addmm_(weighted.T, layer.inputs)
            if layer.bias is not None:
                into[layer.bias].add_(weighted.sum(0))
