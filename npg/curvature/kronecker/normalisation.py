"""Scale and shift of normalisation layers, whose per-sample gradients have a closed form."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# SyncBatchNorm is none of these: what it subtracts is not known here.
NORMALISATIONS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _BatchNorm)


class NormalisationLayer:
    """y = γ x̂ + β, whose per-sample gradients are Σ_r δ x̂ and Σ_r δ over positions r.

    Args:
        module: The layer.
        weight: γ, or None where it is frozen.
        bias: β, or None where there is none or it is frozen.
    """

    def __init__(self, module: nn.Module, weight: Tensor | None, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias
        self.parameters = [p for p in (weight, bias) if p is not None]

    def per_sample(self, module: nn.Module, inputs: Tensor, gradients: Tensor) -> Tensor:
        """Per-sample gradients [N, P] of :attr:`parameters`, concatenated."""
        columns = []
        if self.weight is not None:
            columns.append(self._summed(module, gradients * normalised(module, inputs)))
        if self.bias is not None:
            columns.append(self._summed(module, gradients))
        return columns[0] if len(columns) == 1 else torch.cat(columns, 1)

    def _summed(self, module: nn.Module, values: Tensor) -> Tensor:
        """[N, ...] to [N, parameters of one kind]."""
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):  # parameters along the last dimensions
            size = self.parameters[0].numel()
            entries = 1 if values.ndim == len(module.normalized_shape) else len(values)
            return values.reshape(entries, -1, size).sum(1)
        return values.flatten(2).sum(2) if values.ndim > 2 else values  # along dimension 1


def normalised(module: nn.Module, inputs: Tensor) -> Tensor:
    """x̂, what the layer makes of its inputs before scale and shift."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(inputs, module.normalized_shape, None, None, module.eps)
    if isinstance(module, nn.RMSNorm):
        return F.rms_norm(inputs, module.normalized_shape, None, module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(inputs, module.num_groups, None, None, module.eps)
    assert isinstance(module, _BatchNorm)
    if module.training or module.running_mean is None:
        return F.batch_norm(inputs, None, None, None, None, training=True, eps=module.eps)
    return F.batch_norm(inputs, module.running_mean, module.running_var, eps=module.eps)
