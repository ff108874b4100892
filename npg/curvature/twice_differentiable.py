"""Convolutions, rectifiers and attention whose second derivative costs what it should.

Torch differentiates a convolution's backward pass by convolving whole activations with each other,
which its kernels are not made for. The three terms of it are a convolution and two of the gradients
that a backward pass computes anyway, for which there are kernels; on a CPU these take a fraction of
the time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from npg.curvature.matrix import math_attention


@dataclass(frozen=True)
class _Settings:
    """What a convolution's kernels ask besides tensors."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def convolve(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """W ∗ x + b."""
        none = [0] * len(self.stride)
        result: Tensor = torch.ops.aten.convolution(
            _last(inputs),
            _last(weight),
            bias,
            self.stride,
            self.padding,
            self.dilation,
            False,
            none,
            self.groups,
        )
        return _last(result)

    def backward(
        self, signal: Tensor, inputs: Tensor, weight: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of ⟨δ, W ∗ x + b⟩ in x, W and b, as far as they are wanted."""
        none = [0] * len(self.stride)
        in_inputs, in_weight, in_bias = torch.ops.aten.convolution_backward(
            _last(signal),
            _last(inputs),
            _last(weight),
            [len(weight)],
            self.stride,
            self.padding,
            self.dilation,
            False,
            none,
            self.groups,
            list(wanted),
        )
        # Gradients of parameters lie as these do, for the steps that are taken with both.
        return in_inputs, in_weight.contiguous() if wanted[1] else in_weight, in_bias


def _last(tensor: Tensor) -> Tensor:
    """The tensor with its channels last, the layout that a CPU's kernels need no copies from."""
    if not (tensor.device.type == "cpu" and tensor.ndim == 4):
        return tensor
    if tensor.shape[1] == 1 and tensor.is_contiguous():  # both layouts, but kernels go by strides
        _, _, height, width = tensor.shape
        return tensor.as_strided(tensor.shape, (height * width, 1, width, 1))
    return tensor.contiguous(memory_format=torch.channels_last)


class _Convolution(torch.autograd.Function):
    """y = W ∗ x + b."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        settings: _Settings,
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.settings = settings
        return settings.convolve(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> Any:  # noqa: ANN401
        wanted = tuple(ctx.needs_input_grad[:3])
        return (*_Gradients.apply(signal, *ctx.saved_tensors, wanted, ctx.settings), None)  # type: ignore[no-untyped-call]


class _Gradients(torch.autograd.Function):
    """(∂x, ∂W, ∂b) of a signal δ at the output: linear in each of δ, x and W."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        signal: Tensor,
        inputs: Tensor,
        weight: Tensor,
        wanted: tuple[bool, bool, bool],
        settings: _Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(signal, inputs, weight)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return settings.backward(signal, inputs, weight, wanted)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        to_inputs: Tensor | None,
        to_weight: Tensor | None,
        to_bias: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """⟨x̄, ∂x⟩ + ⟨W̄, ∂W⟩ + ⟨b̄, ∂b⟩ = ⟨δ, W ∗ x̄ + W̄ ∗ x + b̄⟩, differentiated in δ, x and W."""
        signal, inputs, weight = ctx.saved_tensors
        settings: _Settings = ctx.settings
        in_signal: Tensor | None = None
        in_inputs = in_weight = None
        if to_weight is not None:
            in_signal = settings.convolve(inputs, to_weight, to_bias)
            if ctx.needs_input_grad[1]:
                in_inputs, _, _ = settings.backward(signal, inputs, to_weight, (True, False, False))
        elif to_bias is not None:
            in_signal = to_bias.view(-1, *[1] * (signal.ndim - 2)).expand_as(signal)
        if to_inputs is not None:
            moved = settings.convolve(to_inputs, weight)
            in_signal = moved if in_signal is None else moved.add_(in_signal)
            if ctx.needs_input_grad[2]:
                _, in_weight, _ = settings.backward(signal, to_inputs, weight, (False, True, False))
        return in_signal, in_inputs, in_weight, None, None


def _passed(signal: Tensor, outputs: Tensor) -> Tensor:
    signal = _last(signal) if not outputs.is_contiguous() else signal
    result: Tensor = torch.ops.aten.threshold_backward(signal, outputs, 0)
    return result


class _Rectifier(torch.autograd.Function):
    """y = max(x, 0)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:  # noqa: ANN401
        outputs = inputs.clamp(min=0)
        ctx.save_for_backward(outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> Any:  # noqa: ANN401
        return _Passed.apply(signal, *ctx.saved_tensors)  # type: ignore[no-untyped-call]


class _Passed(torch.autograd.Function):
    """What a rectifier lets pass of a signal: linear in it, and constant in the rectifier's input.

    Torch fills a tensor with that zero derivative, and adds it up.
    """

    @staticmethod
    def forward(ctx: Any, signal: Tensor, outputs: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(outputs)
        return _passed(signal, outputs)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (outputs,) = ctx.saved_tensors
        return _passed(signal, outputs), None


_ATTENTION = {
    nn.functional.scaled_dot_product_attention,
    nn.functional.multi_head_attention_forward,
}
_VIEWS = {torch.Tensor.view, torch.Tensor.view_as}
_RECTIFIERS = {torch.relu, torch.Tensor.relu, nn.functional.relu}
_CONVOLUTIONS: dict[Callable[..., Tensor], int] = {
    torch.conv1d: 1,
    torch.conv2d: 2,
    torch.conv3d: 3,
}


# Entries from which on filling a tensor with zeros costs more than two calls of Python.
MANY = 2**18


class TwiceDifferentiable(TorchFunctionMode):
    """Context in which convolutions are made so that ``create_graph=True`` is cheap to go on from.

    Attention takes the kernel that can be differentiated twice at all. What they compute is the
    same, and so are derivatives of every order; from the third on they are torch's own, and cost
    what these do.

    Attributes:
        replaced: How many were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.replaced = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Replaces convolutions; lets everything else pass."""
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return func(*args, **(kwargs or {}))  # its transforms have rules for torch's own alone
        if func in _VIEWS:
            return _viewed(func, args, kwargs or {})
        if func in _ATTENTION:
            self.replaced += 1
            with math_attention():
                return func(*args, **(kwargs or {}))
        dimensions = _CONVOLUTIONS.get(func)
        if func in _RECTIFIERS and torch.is_grad_enabled():
            rectified = _rectified(*args, **(kwargs or {}))
            if rectified is not None:
                self.replaced += 1
                return rectified
        if dimensions is not None and torch.is_grad_enabled():
            replaced = _replaced(dimensions, *args, **(kwargs or {}))
            if replaced is not None:
                self.replaced += 1
                return replaced
        return func(*args, **(kwargs or {}))


def _viewed(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """A view, or a copy where only the layout that was chosen here stands in its way."""
    try:
        return func(*args, **kwargs)
    except RuntimeError as error:
        if "not compatible with input tensor's size and stride" not in str(error):
            raise
        return func(args[0].contiguous(), *args[1:], **kwargs)


def _rectified(input: Tensor, inplace: bool = False) -> Tensor | None:
    """The rectifier's output, or None where torch's own has to do, or is faster."""
    if inplace or type(input) is not Tensor or input.numel() < MANY:
        return None
    result: Tensor = _Rectifier.apply(input)  # type: ignore[no-untyped-call]
    return result


def _replaced(
    dimensions: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,  # noqa: ANN401
    padding: Any = 0,  # noqa: ANN401
    dilation: Any = 1,  # noqa: ANN401
    groups: int = 1,
) -> Tensor | None:
    """The convolution, or None where torch's own has to do."""
    batched = input.ndim == dimensions + 2
    alike = input.dtype == weight.dtype and not torch.is_autocast_enabled(input.device.type)
    alike = alike and not input.is_complex()
    if isinstance(padding, str) or not (batched and alike and type(input) is Tensor):
        return None
    sizes = [
        [value] * dimensions if isinstance(value, int) else list(value) * (dimensions // len(value))
        for value in (stride, padding, dilation)
    ]
    settings = _Settings(sizes[0], sizes[1], sizes[2], groups)
    result: Tensor = _Convolution.apply(input, weight, bias, settings)  # type: ignore[no-untyped-call]
    return result
