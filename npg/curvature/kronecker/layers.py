"""Layers whose parameters form a matrix W with output = W · [input, 1]ᵀ at every position.

A convolution is such a layer on patches, an embedding on one-hot rows. Each class here says what a
module's rows a [N, R, d], signals δ [N, R, o] and matrix W [o, d] are; N counts the entries of the
batch, R the positions at which W is shared. Grouped convolutions have one matrix per group, in a
leading dimension.
"""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class MatrixLayer:
    """What all of them share.

    Args:
        module: The layer.
        weight: Its weight, or None where it is frozen.
        bias: Its bias, or None where it has none or it is frozen.

    Attributes:
        parameters: Those of the two that are trained.
        one_hot: Whether rows are indices [N, R] that stand for one-hot vectors.
        views: Whether :meth:`columns` copies nothing: to write to them writes to the gradients.
    """

    one_hot = False
    views = True

    def __init__(self, module: nn.Module, weight: Tensor | None, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias
        self.parameters = [p for p in (weight, bias) if p is not None]

    def rows(self, module: nn.Module, inputs: Tensor, output: torch.Size) -> Tensor:
        """Inputs of one call, whose output had this shape, as [N, R, d], or [N, R, g, d]."""
        raise NotImplementedError

    def signals(self, module: nn.Module, gradients: Tensor, inputs: Tensor) -> Tensor:
        """Gradients [N, ...] in the outputs of one call as [N, R, o], or [N, R, g, o]."""
        raise NotImplementedError

    def present(self, inputs: Tensor) -> Tensor | None:
        """1 for rows that there are, 0 for those that only fill up, [N, R, g]; None if all are."""
        return None

    def columns(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of :attr:`parameters` as parts [(g,) o, d] of one matrix, side by side."""
        rest = list(gradients)
        parts = [] if self.weight is None else [self.weight_matrix(rest.pop(0))]
        return parts if self.bias is None else [*parts, self.bias_column(rest.pop(0))]

    def matrix(self, gradients: Sequence[Tensor]) -> Tensor:
        """Puts gradients of :attr:`parameters` into one matrix [o, d], or [g, o, d]."""
        parts = self.columns(gradients)
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def gradients(self, matrix: Tensor) -> list[Tensor]:
        """The inverse of :meth:`matrix`."""
        result = []
        if self.weight is not None:
            columns = matrix if self.bias is None else matrix[..., :-1]
            result.append(self.weight_from_matrix(columns))
        if self.bias is not None:
            result.append(matrix[..., -1].reshape(self.bias.shape))
        return result

    def weight_matrix(self, weight: Tensor) -> Tensor:
        """A weight, or its gradient, as [o, d] without the bias' column."""
        return weight

    def weight_from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`weight_matrix`."""
        return matrix

    def bias_column(self, bias: Tensor) -> Tensor:
        """A bias, or its gradient, as [o, 1]."""
        return bias.unsqueeze(-1)

    def _with_ones(self, rows: Tensor) -> Tensor:
        """Keeps the coordinates that are parameters: inputs for the weight, a 1 for the bias."""
        ones = rows.new_ones(1).expand(*rows.shape[:-1], 1)
        if self.weight is None:
            return ones
        return rows if self.bias is None else torch.cat([rows, ones], -1)


class LinearLayer(MatrixLayer):
    """nn.Linear; leading dimensions after the first are positions."""

    def rows(self, module: nn.Module, inputs: Tensor, output: torch.Size) -> Tensor:
        """[N, R, d]."""
        return self._with_ones(_positions(inputs))

    def signals(self, module: nn.Module, gradients: Tensor, inputs: Tensor) -> Tensor:
        """[N, R, o]."""
        return _positions(gradients)


class ConvolutionLayer(MatrixLayer):
    """nn.Conv1d, Conv2d, Conv3d: a linear layer on patches.

    Columns are ordered kernel first, channels last: what lies side by side in a patch then does so
    in the image, and copying patches out of it takes a quarter of the time.
    """

    views = False

    def __init__(self, module: nn.Module, weight: Tensor | None, bias: Tensor | None) -> None:
        super().__init__(module, weight, bias)
        self.groups: int = module.groups  # type: ignore[assignment]

    def rows(self, module: nn.Module, inputs: Tensor, output: torch.Size) -> Tensor:
        """Patches [N, positions, (g,) kernel · channels]."""
        assert isinstance(module, CONVOLUTIONS)
        inputs = _batched(inputs, len(module.kernel_size))
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        padding = module._reversed_padding_repeated_twice
        if any(padding):
            inputs = F.pad(inputs, padding, mode=mode)
        patches = _patches(inputs, module.kernel_size, module.stride, module.dilation)
        return self._with_ones(self._grouped(patches))

    def _grouped(self, patches: Tensor) -> Tensor:
        """[N, positions, kernel, channels] to [N, positions, (g,) kernel · channels]."""
        if self.groups == 1:
            return patches.flatten(2)
        grouped: Tensor = patches.unflatten(-1, (self.groups, -1))
        return grouped.transpose(2, 3).flatten(3)

    def signals(self, module: nn.Module, gradients: Tensor, inputs: Tensor) -> Tensor:
        """[N, positions, (g,) channels]."""
        gradients = _batched(gradients, len(module.kernel_size))  # type: ignore[arg-type]
        flat = gradients.flatten(2).transpose(1, 2)
        return flat if self.groups == 1 else flat.unflatten(-1, (self.groups, -1))

    def weight_matrix(self, weight: Tensor) -> Tensor:
        """[o, c, *k] to [(g,) o/g, k · c]."""
        flat = weight.movedim(1, -1).flatten(1)
        return flat if self.groups == 1 else flat.unflatten(0, (self.groups, -1))

    def weight_from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`weight_matrix`."""
        assert self.weight is not None
        outputs, channels, *kernel = self.weight.shape
        return matrix.reshape(outputs, *kernel, channels).movedim(-1, 1)

    def bias_column(self, bias: Tensor) -> Tensor:
        """[(g,) o/g, 1]."""
        grouped = bias if self.groups == 1 else bias.unflatten(0, (self.groups, -1))
        return grouped.unsqueeze(-1)


class TransposedConvolutionLayer(ConvolutionLayer):
    """nn.ConvTranspose1d … 3d: the flipped kernel over inputs that are spread by zeros."""

    def rows(self, module: nn.Module, inputs: Tensor, output: torch.Size) -> Tensor:
        """Patches [N, positions, (g,) kernel · channels]."""
        assert isinstance(module, TRANSPOSED_CONVOLUTIONS)
        dimensions = len(module.kernel_size)
        inputs = _batched(inputs, dimensions)
        spread = [
            (size - 1) * s + 1 for size, s in zip(inputs.shape[2:], module.stride, strict=True)
        ]
        wide = inputs.new_zeros(*inputs.shape[:2], *spread)
        lattice = wide
        for i, stride in enumerate(module.stride):
            lattice = lattice[(slice(None),) * (2 + i) + (slice(None, None, stride),)]
        lattice.copy_(inputs)
        padding: list[int] = []
        for i in reversed(range(dimensions)):  # F.pad begins with the last dimension
            window = module.dilation[i] * (module.kernel_size[i] - 1)
            edge = window - int(module.padding[i])
            # What output_padding= or output_size= has added at the far end.
            far = output[i - dimensions] + window - edge - spread[i]
            padding += [edge, far]
        wide = F.pad(wide, padding)
        patches = _patches(wide, module.kernel_size, (1,) * dimensions, module.dilation)
        return self._with_ones(self._grouped(patches))

    def weight_matrix(self, weight: Tensor) -> Tensor:
        """[c, o/g, *k] to [(g,) o/g, k · c/g]."""
        kernel = tuple(range(2, weight.ndim))
        grouped = weight.flip(kernel).reshape(self.groups, -1, *weight.shape[1:])
        flat = grouped.movedim(1, -1).flatten(2)
        return flat[0] if self.groups == 1 else flat

    def weight_from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`weight_matrix`."""
        assert self.weight is not None
        channels, per_group, *kernel = self.weight.shape
        grouped = matrix.reshape(self.groups, per_group, *kernel, channels // self.groups)
        weight = grouped.movedim(-1, 1).reshape(self.weight.shape)
        return weight.flip(tuple(range(2, weight.ndim)))


class EmbeddingLayer(MatrixLayer):
    """nn.Embedding: a linear layer on one-hot rows, whose second moment is a diagonal."""

    one_hot = True

    def rows(self, module: nn.Module, inputs: Tensor, output: torch.Size) -> Tensor:
        """Indices [N, R]."""
        return inputs.reshape(entries(module, inputs), -1)

    def signals(self, module: nn.Module, gradients: Tensor, inputs: Tensor) -> Tensor:
        """[N, R, o]; a padding index is no parameter, and gets none."""
        assert isinstance(module, nn.Embedding)
        n = entries(module, inputs)
        flat = gradients.reshape(n, -1, gradients.shape[-1])
        if module.padding_idx is None:
            return flat
        return flat * (inputs.reshape(n, -1, 1) != module.padding_idx)

    def weight_matrix(self, weight: Tensor) -> Tensor:
        """[V, o] to [o, V]."""
        return weight.T

    def weight_from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`weight_matrix`."""
        return matrix.T


def entries(module: nn.Module, inputs: Tensor) -> int:
    """Entries of the batch that a layer got; an input without a batch is one."""
    if isinstance(module, nn.Embedding):
        unbatched = 0
    elif isinstance(module, CONVOLUTIONS + TRANSPOSED_CONVOLUTIONS):
        unbatched = len(module.kernel_size) + 1
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        unbatched = len(module.normalized_shape)
    else:
        unbatched = 1
    return 1 if inputs.ndim <= unbatched else len(inputs)


def _positions(values: Tensor) -> Tensor:
    """[N, ..., d] to [N, R, d]; a single vector is a batch of one."""
    if values.ndim == 1:
        return values.reshape(1, 1, -1)
    return values.reshape(len(values), -1, values.shape[-1])


def _batched(values: Tensor, dimensions: int) -> Tensor:
    """A batch of one where a convolution got an image without one."""
    return values.unsqueeze(0) if values.ndim == dimensions + 1 else values


def _patches(
    inputs: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Windows of padded inputs [N, c, *size] as [N, positions, window, c]."""
    dimensions = len(kernel)
    windows = inputs.movedim(1, -1).contiguous()
    for i, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        windows = windows.unfold(1 + i, (k - 1) * d + 1, s)[..., ::d]
    n, channels = inputs.shape[:2]
    positions = prod(windows.shape[1 : 1 + dimensions])
    return windows.movedim(1 + dimensions, -1).reshape(n, positions, prod(kernel), channels)


MATRIX_LAYERS: dict[type[nn.Module], type[MatrixLayer]] = {
    nn.Linear: LinearLayer,
    nn.Embedding: EmbeddingLayer,
    **dict.fromkeys(CONVOLUTIONS, ConvolutionLayer),
    **dict.fromkeys(TRANSPOSED_CONVOLUTIONS, TransposedConvolutionLayer),
}
