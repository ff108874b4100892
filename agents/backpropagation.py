"""Back-propagation through a fully connected network, written by hand.

For a small network autograd's bookkeeping costs twice what the arithmetic does. From δ = ∂L/∂output
the whole of it is

    ∂W_l = δᵀ a_l,    ∂b_l = Σ δ,    δ ← φ'(a) ⊙ (δ W_l).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from agents.plain_networks import Layers

# In place: a ← φ(a), and δ ← φ'(a) ⊙ δ from a = φ(z).
_FORWARD: dict[type, Callable[[Tensor], Tensor]] = {nn.Tanh: torch.tanh_, nn.ReLU: torch.relu_}
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_threshold_backward = torch.ops.aten.threshold_backward.grad_input
_BACKWARD: dict[type, Callable[[Tensor, Tensor], object]] = {
    nn.Tanh: lambda delta, a: _tanh_backward(delta, a, grad_input=delta),
    nn.ReLU: lambda delta, a: _threshold_backward(delta, a, 0, grad_input=delta),
}


class Backpropagation:
    """Forward and backward passes of one network; they share their memory from call to call.

    Args:
        layers: For which :func:`can_be_written_by_hand` holds.
        rows: Most rows that a pass will have.
        gradients: Memory for the gradients of :func:`trained_parameters`. Default: its own.
    """

    def __init__(
        self, layers: Layers, rows: int, gradients: Sequence[Tensor] | None = None
    ) -> None:
        self.rows = rows
        self.weights = [(linear.weight, linear.bias) for linear, _ in layers]
        self.activate = [_FORWARD.get(type(activation)) for _, activation in layers]
        self.differentiate = [_BACKWARD.get(type(activation)) for _, activation in layers]
        empty = self.weights[0][0].new_empty
        self.outputs = [empty(rows, len(weight)) for weight, _ in self.weights]
        self.deltas = [empty(rows, weight.shape[1]) for weight, _ in self.weights]
        if gradients is None:
            gradients = [torch.empty_like(p) for p in trained_parameters(layers)]
        self.gradients = gradients

    def forward(self, x: Tensor) -> Tensor:
        """Computes the output [N, K] of rows [N, D], in memory that the next call uses again."""
        size = len(x)
        self.inputs = []
        for (weight, bias), activate, memory in zip(
            self.weights, self.activate, self.outputs, strict=True
        ):
            self.inputs.append(x)
            output = memory if size == self.rows else memory[:size]
            if bias is None:
                x = torch.mm(x, weight.T, out=output)
            else:
                x = torch.addmm(bias, x, weight.T, out=output)
            if activate is not None:
                activate(x)
        return x

    def backward(self, delta: Tensor) -> None:
        """Leaves the gradients of L in the parameters' ``grad``, from δ = ∂L/∂output [N, K]."""
        memory = iter(reversed(self.gradients))
        for i, signal in self._descend(delta):
            weight, bias = self.weights[i]
            if bias is not None and bias.requires_grad:
                bias.grad = torch.sum(signal, 0, out=next(memory))
            if weight.requires_grad:
                weight.grad = torch.mm(signal.T, self.inputs[i], out=next(memory))

    def signals(self, delta: Tensor) -> list[Tensor]:
        """Computes δ [N, o] in every layer's output, in memory that the next pass uses again."""
        return [signal for _, signal in self._descend(delta)][::-1]

    def _descend(self, delta: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yields every layer's number and δ, from the last layer to the first."""
        size = len(delta)
        for i in reversed(range(len(self.weights))):
            yield i, delta
            if i > 0:
                below = self.deltas[i] if size == self.rows else self.deltas[i][:size]
                delta = torch.mm(delta, self.weights[i][0], out=below)
                differentiate = self.differentiate[i - 1]
                if differentiate is not None:
                    differentiate(delta, self.inputs[i])


def trained_parameters(layers: Layers) -> list[Tensor]:
    """Weights and biases that require a gradient, in the order of the layers."""
    return [
        p
        for linear, _ in layers
        for p in (linear.weight, linear.bias)
        if p is not None and p.requires_grad
    ]


def can_be_written_by_hand(*networks: Layers) -> bool:
    """Whether the passes of these networks are what autograd would do, hooks and all."""
    known = all(
        activation is None or (type(activation) in _FORWARD and layer is not layers[-1])
        for layers in networks
        for layer in layers
        for activation in layer[1:]
    )
    parameters = [p for layers in networks for linear, _ in layers for p in linear.parameters()]
    tied = len({id(p) for p in parameters}) < len(parameters)  # then a weight has two gradients
    return known and not tied and not any(map(hooked, parameters))


def hooked(parameter: Tensor) -> bool:
    """Whether autograd would call somebody with this parameter's gradient."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)
