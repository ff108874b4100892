"""Jacobian products of a chain of linear layers and elementwise activations, written by hand.

A policy or value network is usually such a chain. The graph that autograd recorded tells: its
nodes from the output down are ``addmm, tanh, addmm, …``, and they hold the layers' inputs. So any
code that computes a chain is recognised, whatever its modules are called, and anything else is
left to the general path.

With inputs a_l, weights W_l and derivatives φ'_l of the activations, tangents run upward as
ż_l = a_l Ẇ_lᵀ + ȧ_l W_lᵀ + ḃ_l, ȧ_{l+1} = φ'_l ⊙ ż_l, and cotangents δ downward as
W̄_l = δ_lᵀ a_l, b̄_l = Σ δ_l, δ_{l−1} = φ'_{l−1} ⊙ (δ_l W_l).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass
class AffineLayer:
    """One linear layer at the recorded point.

    Attributes:
        weight: W [out, in], values.
        inputs: a [N, in].
        weight_index: Position of W among the parameters; None if it is not one of them.
        bias_index: The same for the bias; None also where there is no bias.
        derivative: φ' [N, in] of the activation that made the inputs; None below the first
            layer, and where there is no activation between two layers.
    """

    weight: Tensor
    inputs: Tensor
    weight_index: int | None
    bias_index: int | None
    derivative: Tensor | None = None


class AffineChain:
    """Jacobian rows of one output tensor [N, K] of a chain.

    Args:
        layers: The layers, from the input up.
        softmax: Probabilities [N, K] if the output is normalised logits (z − log Σ exp z).
    """

    def __init__(self, layers: Sequence[AffineLayer], softmax: Tensor | None) -> None:
        self.layers = list(layers)
        self.softmax = softmax
        # One buffer per hidden layer, for tangents on the way up and cotangents on the way down:
        # fresh ones of several megabytes would cost as much in page faults as the products do.
        self.hidden = [torch.empty_like(layer.inputs) for layer in self.layers[1:]]

    @classmethod
    def recognise(cls, output: Tensor, parameters: Sequence[Tensor]) -> "AffineChain | None":
        """Reads a chain off the output's graph.

        Args:
            output: Tensor [N, K] with a graph.
            parameters: What to differentiate with respect to.

        Returns:
            The chain, or None if the graph is anything else: another operation, a weight used
            twice, a frozen or reparametrised weight below a trained one.
        """
        node: Any = output.grad_fn
        if node is None or output.ndim != 2:
            return None
        index = {id(parameter): i for i, parameter in enumerate(parameters)}
        softmax = None
        if node.name() == "SubBackward0":
            node = _below_log_softmax(node)
            softmax = output.detach().exp()
        layers: list[AffineLayer] = []
        while node is not None:
            layer, node = _read_layer(node, index)
            if layer is None:
                return None
            layers.append(layer)
            if node is not None and node.name() in DERIVATIVES:
                layer.derivative = DERIVATIVES[node.name()](node)
                node = node.next_functions[0][0]
                if node is None:
                    return None
        used = [
            i for layer in layers for i in (layer.weight_index, layer.bias_index) if i is not None
        ]
        if not layers or not used or len(set(used)) < len(used):
            return None
        return cls(layers[::-1], softmax)

    def jvp(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """Returns [J v], from one tensor per parameter."""
        tangent: Tensor | None = None
        above = [layer.derivative for layer in self.layers[1:]]
        for layer, derivative, buffer in zip(
            self.layers, [*above, None], [*self.hidden, None], strict=True
        ):
            terms = []
            if layer.weight_index is not None:
                terms.append((layer.inputs, pieces[layer.weight_index].T))
            if tangent is not None:
                terms.append((tangent, layer.weight.T))
            if not terms and layer.bias_index is None:
                continue  # nothing below here is being differentiated
            shape = (len(layer.inputs), len(layer.weight))
            bias = None if layer.bias_index is None else pieces[layer.bias_index].expand(shape)
            out = layer.inputs.new_empty(shape) if buffer is None else buffer
            if not terms:
                out.copy_(bias)
            for i, (left, right) in enumerate(terms):
                if i > 0:
                    out.addmm_(left, right)
                elif bias is None:
                    torch.mm(left, right, out=out)
                else:
                    torch.addmm(bias, left, right, out=out)
            if derivative is not None:
                out.mul_(derivative)
            tangent = out
        assert tangent is not None  # recognise() demands a used parameter
        if self.softmax is not None:
            tangent -= (self.softmax * tangent).sum(-1, keepdim=True)
        return [tangent]

    def add_vjp(self, cotangents: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Adds Jᵀu to one tensor per parameter."""
        (delta,) = cotangents
        if self.softmax is not None:
            delta = delta - self.softmax * delta.sum(-1, keepdim=True)
        for layer, buffer in zip(self.layers[::-1], [*self.hidden[::-1], None], strict=True):
            if layer.weight_index is not None:
                into[layer.weight_index].addmm_(delta.T, layer.inputs)
            if layer.bias_index is not None:
                into[layer.bias_index].add_(delta.sum(0))
            if buffer is not None:
                delta = torch.mm(delta, layer.weight, out=buffer)
                if layer.derivative is not None:
                    delta.mul_(layer.derivative)


class Node(Protocol):
    """An autograd node, as far as it is read here."""

    next_functions: tuple[tuple[Any, int], ...]

    def name(self) -> str:
        """Name of the operation's backward."""


def _below_log_softmax(node: Any) -> Any:
    """The node of z, if this one is z − logsumexp(z, −1), else itself (and so no chain)."""
    (first, _), (second, _) = node.next_functions
    normalised = (
        second is not None
        and second.name() == "LogsumexpBackward0"
        and second.next_functions[0][0] is first
        and node._saved_alpha == 1
        and second._saved_keepdim
        and tuple(d - 2**64 if d > 2**63 else d for d in second._saved_dim) in ((-1,), (1,))
    )
    return first if normalised else node


def _read_layer(node: Any, index: dict[int, int]) -> tuple[AffineLayer | None, Any]:
    """Reads ``addmm`` or ``mm``, and returns the layer and the node of its input."""
    name = node.name()
    if name == "AddmmBackward0":
        (bias, _), (below, _), (transposed, _) = node.next_functions
        if node._saved_alpha != 1 or node._saved_beta != 1 or transposed is None:
            return None, None
        inputs = node._saved_mat1
    elif name == "MmBackward0":
        bias = None
        (below, _), (transposed, _) = node.next_functions
        if transposed is None:
            return None, None
        inputs = node._saved_self
    else:
        return None, None
    if transposed.name() not in ("TBackward0", "TransposeBackward0"):
        return None, None
    leaf = transposed.next_functions[0][0]
    if leaf is None or leaf.name() != "torch::autograd::AccumulateGrad":
        return None, None
    weight = leaf.variable
    bias_index = None
    if bias is not None:
        if bias.name() != "torch::autograd::AccumulateGrad":
            return None, None
        if bias.variable.shape != weight.shape[:1]:
            return None, None
        bias_index = index.get(id(bias.variable))
    if inputs is None or inputs.shape[-1] != weight.shape[-1]:
        return None, None
    layer = AffineLayer(weight.detach().clone(), inputs.detach(), index.get(id(weight)), bias_index)
    return layer, below


def _tanh(node: Any) -> Tensor:
    return 1 - node._saved_result.detach().square()


def _relu(node: Any) -> Tensor:
    result: Tensor = node._saved_result.detach()
    return (result > 0).to(result.dtype)


def _sigmoid(node: Any) -> Tensor:
    result: Tensor = node._saved_result.detach()
    return result * (1 - result)


def _leaky_relu(node: Any) -> Tensor:
    inputs: Tensor = node._saved_self.detach()
    return torch.where(inputs > 0, 1.0, node._saved_negative_slope).to(inputs.dtype)


DERIVATIVES: dict[str, Callable[[Any], Tensor]] = {
    "TanhBackward0": _tanh,
    "ReluBackward0": _relu,
    "SigmoidBackward0": _sigmoid,
    "LeakyReluBackward0": _leaky_relu,
}
