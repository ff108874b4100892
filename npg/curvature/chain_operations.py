"""The operations that an :class:`npg.curvature.affine_chain.AffineChain` is made of.

Each reads itself off an autograd node and multiplies tangents and cotangents. What autograd saved
for its own backward pass is all they need: nothing is computed again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ACCUMULATE = "torch::autograd::AccumulateGrad"
Found = tuple["Operation", Any, torch.Size]


class Operation:
    """One operation at the recorded point.

    Attributes:
        reshapes: Whether the output has another shape than the input.
    """

    reshapes = False

    def jvp(self, tangent: Tensor | None, pieces: Sequence[Tensor]) -> Tensor | None:
        """Carries a tangent up; None stands for zero. May overwrite it."""
        raise NotImplementedError

    def vjp(self, cotangent: Tensor, into: Sequence[Tensor]) -> Tensor:
        """Carries a cotangent down, adding what parameters receive to ``into``."""
        raise NotImplementedError

    def keep(self, rows: int) -> bool:
        """Forgets all but the first entries of the batch; False where these are not its rows."""
        raise NotImplementedError


class Parametric(Operation):
    """A layer with a weight and perhaps a bias.

    Attributes:
        weight: The weight's position among the parameters; None if it is not one of them.
        bias: The same for the bias; None also where there is no bias.
        weight_value: A copy of the weight: products belong to the recorded point, even if the
            parameter moves afterwards.
        inputs: What the layer saw.
    """

    def __init__(
        self, weight: int | None, bias: int | None, weight_value: Tensor, inputs: Tensor
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.weight_value = weight_value.detach().clone()
        self.inputs = inputs.detach()

    def keep(self, rows: int) -> bool:
        """Keeps the first rows of what the layer saw."""
        self.inputs = self.inputs[:rows]
        return True

    def add_vjp(self, cotangent: Tensor, into: Sequence[Tensor]) -> None:
        """Adds what the layer's own parameters receive."""
        raise NotImplementedError


class Affine(Parametric):
    """z = a Wᵀ + b with a [N, in], W [out, in].

    Attributes:
        out: Where ż goes, if there is a place [N, out] for it.
        below: Where δ W goes [N, in].
    """

    out: Tensor | None = None
    below: Tensor | None = None

    def jvp(self, tangent: Tensor | None, pieces: Sequence[Tensor]) -> Tensor | None:
        """ż = a Ẇᵀ + ȧ Wᵀ + ḃ."""
        terms = []
        if self.weight is not None:
            terms.append((self.inputs, pieces[self.weight].T))
        if tangent is not None:
            terms.append((tangent, self.weight_value.T))
        if not terms and self.bias is None:
            return None
        shape = (len(self.inputs), len(self.weight_value))
        out = self.inputs.new_empty(shape) if self.out is None else self.out
        if self.bias is not None:
            bias = pieces[self.bias].expand(shape)
            if not terms:
                return out.copy_(bias)
            torch.addmm(bias, *terms[0], out=out)
        else:
            torch.mm(*terms[0], out=out)
        for left, right in terms[1:]:
            out.addmm_(left, right)
        return out

    def vjp(self, cotangent: Tensor, into: Sequence[Tensor]) -> Tensor:
        """W̄ += δᵀ a, b̄ += Σ δ; returns δ W."""
        self.add_vjp(cotangent, into)
        return torch.mm(cotangent, self.weight_value, out=self.below)

    def add_vjp(self, cotangent: Tensor, into: Sequence[Tensor]) -> None:
        """W̄ += δᵀ a, b̄ += Σ δ."""
        if self.weight is not None:
            into[self.weight].addmm_(cotangent.T, self.inputs)
        if self.bias is not None:
            into[self.bias].add_(cotangent.sum(0))


class Convolution(Parametric):
    """Any convolution that ``aten::convolution`` computes."""

    def __init__(self, settings: tuple[Any, ...], *parametric: Any) -> None:
        super().__init__(*parametric)
        self.settings = settings

    def jvp(self, tangent: Tensor | None, pieces: Sequence[Tensor]) -> Tensor | None:
        """ż = a * Ẇ + ȧ * W + ḃ."""
        bias = None if self.bias is None else pieces[self.bias]
        result: Tensor | None = None
        if self.weight is not None:
            result = torch.convolution(self.inputs, pieces[self.weight], bias, *self.settings)
        elif bias is not None and tangent is None:
            result = torch.convolution(
                self.inputs, torch.zeros_like(self.weight_value), bias, *self.settings
            )
        if tangent is not None:
            with_bias = bias if result is None else None
            moved = torch.convolution(tangent, self.weight_value, with_bias, *self.settings)
            result = moved if result is None else result.add_(moved)
        return result

    def vjp(self, cotangent: Tensor, into: Sequence[Tensor]) -> Tensor:
        """Adds to the parameters; returns what the input receives."""
        return self._backward(cotangent, into, wants_input=True)

    def add_vjp(self, cotangent: Tensor, into: Sequence[Tensor]) -> None:
        """Adds to the parameters."""
        self._backward(cotangent, into, wants_input=False)

    def _backward(self, cotangent: Tensor, into: Sequence[Tensor], wants_input: bool) -> Tensor:
        below, weight, bias = torch.ops.aten.convolution_backward(
            cotangent,
            self.inputs,
            self.weight_value,
            [len(self.weight_value)] if self.bias is not None else None,
            *self.settings,
            [wants_input, self.weight is not None, self.bias is not None],
        )
        if self.weight is not None:
            into[self.weight].add_(weight)
        if self.bias is not None:
            into[self.bias].add_(bias)
        result: Tensor = below
        return result


class Elementwise(Operation):
    """An activation φ, known by what its derivative at the recorded point does.

    Attributes:
        kernel: (t, value) ↦ φ' ⊙ t, in place.
        value: What φ' is computed from. Where that is φ's own value, which the next layer keeps
            anyway, nothing is stored for it: of three arrays that a product reads per layer that
            saves one.
    """

    def __init__(self, kernel: Callable[[Tensor, Tensor], Tensor], value: Tensor) -> None:
        self.kernel = kernel
        self.value = value.detach()

    def keep(self, rows: int) -> bool:
        """Keeps the first rows of what φ' is computed from."""
        self.value = self.value[:rows]
        return True

    def times_derivative(self, tangent: Tensor) -> Tensor:
        """φ' ⊙ t, in place."""
        return self.kernel(tangent, self.value)

    def jvp(self, tangent: Tensor | None, pieces: Sequence[Tensor]) -> Tensor | None:
        """φ' ⊙ ż."""
        return None if tangent is None else self.times_derivative(tangent)

    def vjp(self, cotangent: Tensor, into: Sequence[Tensor]) -> Tensor:
        """φ' ⊙ δ."""
        return self.times_derivative(cotangent)


class Reshape(Operation):
    """A view."""

    reshapes = True

    def __init__(self, below: torch.Size, above: torch.Size) -> None:
        self.shapes = below, above

    def keep(self, rows: int) -> bool:
        """Keeps the first rows of both shapes, if the view left the rows apart."""
        below, above = self.shapes
        self.shapes = torch.Size([rows, *below[1:]]), torch.Size([rows, *above[1:]])
        return below[:1] == above[:1]

    def jvp(self, tangent: Tensor | None, pieces: Sequence[Tensor]) -> Tensor | None:
        """The same numbers in the upper shape."""
        return None if tangent is None else tangent.reshape(self.shapes[1])

    def vjp(self, cotangent: Tensor, into: Sequence[Tensor]) -> Tensor:
        """The same numbers in the lower shape."""
        return cotangent.reshape(self.shapes[0])


class LogSoftmax(Operation):
    """z − log Σ exp z along the last dimension: how Categorical normalises its logits."""

    def __init__(self, probabilities: Tensor) -> None:
        self.probabilities = probabilities

    def keep(self, rows: int) -> bool:
        """Keeps the first rows of the probabilities."""
        self.probabilities = self.probabilities[:rows]
        return True

    @classmethod
    def read(cls, node: Any, output: Tensor) -> tuple["LogSoftmax | None", Any]:
        """Reads z − logsumexp(z, −1, keepdim=True), and returns it with the node of z."""
        (first, _), (second, _) = node.next_functions
        if (
            first is None
            or second is None
            or second.name() != "LogsumexpBackward0"
            or second.next_functions[0][0] is not first
            or node._saved_alpha != 1
            or not second._saved_keepdim
        ):
            return None, None
        dimensions = [d - 2**64 if d >= 2**63 else d for d in second._saved_dim]
        if dimensions not in ([-1], [output.ndim - 1]):
            return None, None
        return cls(output.detach().exp()), first

    def jvp(self, tangent: Tensor | None, pieces: Sequence[Tensor]) -> Tensor | None:
        """ż − Σ p ż."""
        if tangent is None:
            return None
        return tangent.sub_((self.probabilities * tangent).sum(-1, keepdim=True))

    def vjp(self, cotangent: Tensor, into: Sequence[Tensor]) -> Tensor:
        """δ − p Σ δ; never in place, for the cotangent is the caller's."""
        return cotangent - self.probabilities * cotangent.sum(-1, keepdim=True)


def _parameters(weight: Any, bias: Any) -> bool:
    """Whether both nodes are plain parameters; a bias may be missing."""
    plain = weight is not None and weight.name() == ACCUMULATE
    return plain and (bias is None or bias.name() == ACCUMULATE)


def _position(node: Any, index: dict[int, int]) -> int | None:
    return None if node is None else index.get(id(node.variable))


def _read_linear(node: Any, shape: torch.Size, index: dict[int, int]) -> Found | None:
    if node.name() == "MmBackward0":
        bias, ((below, _), (transposed, _)) = None, node.next_functions
        inputs = node._saved_self
    else:
        (bias, _), (below, _), (transposed, _) = node.next_functions
        inputs = node._saved_mat1
        if node._saved_alpha != 1 or node._saved_beta != 1:
            return None
    if transposed is None or transposed.name() not in ("TBackward0", "TransposeBackward0"):
        return None
    leaf = transposed.next_functions[0][0]
    if not _parameters(leaf, bias) or inputs is None:
        return None
    weight = leaf.variable
    if weight.ndim != 2 or weight.shape != (shape[-1], inputs.shape[-1]):
        return None
    if bias is not None and bias.variable.shape != shape[-1:]:  # broadcast, perhaps
        return None
    layer = Affine(_position(leaf, index), _position(bias, index), weight, inputs)
    return layer, below, inputs.shape


def _read_convolution(node: Any, shape: torch.Size, index: dict[int, int]) -> Found | None:
    (below, _), (weight, _), (bias, _) = node.next_functions
    if not _parameters(weight, bias) or node._saved_input is None:
        return None
    settings = (
        node._saved_stride,
        node._saved_padding,
        node._saved_dilation,
        node._saved_transposed,
        node._saved_output_padding,
        node._saved_groups,
    )
    if node._saved_transposed:
        return None
    inputs = node._saved_input
    layer = Convolution(
        settings, _position(weight, index), _position(bias, index), weight.variable, inputs
    )
    return layer, below, inputs.shape


def _read_view(node: Any, shape: torch.Size, index: dict[int, int]) -> Found | None:
    below = torch.Size(node._saved_self_sym_sizes)
    return Reshape(below, shape), node.next_functions[0][0], below


def _elementwise(
    kernel_and_value: Callable[[Any], tuple[Callable[[Tensor, Tensor], Tensor], Tensor] | None],
) -> Callable[[Any, torch.Size, dict[int, int]], Found | None]:
    def read(node: Any, shape: torch.Size, index: dict[int, int]) -> Found | None:
        found = kernel_and_value(node)
        return None if found is None else (Elementwise(*found), node.next_functions[0][0], shape)

    return read


def _times_tanh(t: Tensor, value: Tensor) -> Tensor:
    """T ⊙ (1 − value²)."""
    product: Tensor = torch.ops.aten.tanh_backward.grad_input(t, value, grad_input=t)
    return product


def _times_sigmoid(t: Tensor, value: Tensor) -> Tensor:
    """T ⊙ value ⊙ (1 − value)."""
    product: Tensor = torch.ops.aten.sigmoid_backward.grad_input(t, value, grad_input=t)
    return product


def _times_relu(t: Tensor, value: Tensor) -> Tensor:
    """T where value > 0, else 0."""
    product: Tensor = torch.ops.aten.threshold_backward.grad_input(t, value, 0, grad_input=t)
    return product


def _by_autograd(
    function: Callable[..., Tensor], node: Any, **settings: Any
) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    inputs = node._saved_self.detach().requires_grad_()
    with torch.enable_grad():
        values = function(inputs, **settings).sum()
    (derivative,) = torch.autograd.grad(values, inputs)
    return Tensor.mul_, derivative


def _elu(node: Any) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor] | None:
    if not hasattr(node, "_saved_self"):  # in place: its input is gone
        return None
    if node._saved_scale != 1 or node._saved_input_scale != 1:  # SELU, CELU
        return None
    return _by_autograd(F.elu, node, alpha=node._saved_alpha)


READERS: dict[str, Callable[[Any, torch.Size, dict[int, int]], Found | None]] = {
    "AddmmBackward0": _read_linear,
    "MmBackward0": _read_linear,
    "ConvolutionBackward0": _read_convolution,
    "ViewBackward0": _read_view,
    "UnsafeViewBackward0": _read_view,
    "ReshapeAliasBackward0": _read_view,
    "TanhBackward0": _elementwise(lambda n: (_times_tanh, n._saved_result)),
    "ReluBackward0": _elementwise(lambda n: (_times_relu, n._saved_result)),
    "SigmoidBackward0": _elementwise(lambda n: (_times_sigmoid, n._saved_result)),
    "LeakyReluBackward0": _elementwise(
        lambda n: _by_autograd(F.leaky_relu, n, negative_slope=n._saved_negative_slope)
    ),
    "EluBackward0": _elementwise(_elu),
    "GeluBackward0": _elementwise(
        lambda n: _by_autograd(F.gelu, n, approximate=n._saved_approximate)
    ),
    "SiluBackward0": _elementwise(lambda n: _by_autograd(F.silu, n)),
}
