"""Blocks of the Fisher matrix, one per layer: their second moments, summed over a step's batches.

A sample's gradient in a layer with matrix W is Σ_r δ_r a_rᵀ over positions r. K-FAC takes the mean
of its outer product apart into G ⊗ A, for row-major ``W.flatten()``. With N entries in the batch,
S samples (S = N unless every position is one), and R positions:

    expand:  A = Σₙᵣ a aᵀ / (N R),   G = Σₙᵣ δ δᵀ / S
    reduce:  A = Σₙ ā āᵀ / N,        G = Σₙ (Σᵣ δ)(Σᵣ δ)ᵀ / S,   ā the mean of a over r

Both factors stay the same when every row of the batch is doubled. Positions that a mask leaves
out, and padding indices, count in neither.

Reference:
    Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature",
    2015; Grosse and Martens, "A Kronecker-factored approximate Fisher matrix for convolution
    layers", 2016; Eschenhagen et al., "Kronecker-factored approximate curvature for modern neural
    network architectures", 2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from npg.curvature.kronecker.layers import MatrixLayer
from npg.curvature.kronecker.normalisation import NormalisationLayer
from npg.curvature.kronecker.positions import (
    at_least_single,
    averaged,
    counted,
    kept_positions,
    second_moment,
)
from npg.errors import ConfigurationError

Sharing = Literal["expand", "reduce"]

# Up to so many parameters a normalisation layer's block is kept whole, else as its diagonal.
WHOLE_NORMALISATION = 256
# The same for parameters outside known layers, whose block may have to be formed by products.
WHOLE_FREE = 32


@dataclass
class Batch:
    """What all calls of one forward pass share.

    Attributes:
        samples: Their number; entries of the first layer's input until something better is known.
    """

    samples: int = 0


@dataclass
class Call:
    """One call of a layer in a forward pass.

    Attributes:
        module: The layer.
        inputs: What it got, outside the graph.
        part: Which of the module's matrices, where it has several.
        batch: The forward pass.
        gradients: ∇ log p in its output, one tensor per label that was drawn or column of the
            output's Fisher matrix.
        outputs: Σ of its output over entries and positions [(g,) o], where somebody noted it.
    """

    module: nn.Module
    inputs: Tensor
    part: str = ""
    batch: Batch = field(default_factory=Batch)
    gradients: list[Tensor] = field(default_factory=list)
    outputs: Tensor | None = None


class Block:
    """Second moments of one block, as sums of this step and as running means.

    Attributes:
        parameters: What the block is over.
        moments: Running means; empty before the first update.
        updates: Number of updates that entered them.
        sums: Sums of this step, with what to divide each by in :attr:`counts`.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.moments: list[Tensor] = []
        self.updates = 0
        self.sums: list[Tensor] = []
        self.counts: list[float | Tensor] = []

    def measure(self, calls: Sequence[Call], samples: int, mask: Tensor | None = None) -> None:
        """Adds the moments of one batch.

        Args:
            calls: Calls of the block's layers, with gradients.
            samples: Number of samples that count.
            mask: Which samples these are, of the prediction's batch shape. Default: all.
        """
        raise NotImplementedError

    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the sums."""
        raise NotImplementedError

    def _add(self, sums: Sequence[Tensor], counts: Sequence[float | Tensor]) -> None:
        if not self.sums:
            self.sums, self.counts = list(sums), list(counts)
            return
        torch._foreach_add_(self.sums, list(sums))
        self.counts = [old + new for old, new in zip(self.counts, counts, strict=True)]

    def traces(self) -> list[Tensor]:
        """One number per sum that is finite if and only if the sum is."""
        return [(s.diagonal(dim1=-2, dim2=-1) if s.ndim > 1 else s).sum() for s in self.sums]

    def update(self, decay: float) -> None:
        """Lets this step's sums enter the running means, with weight 1/k in the k-th update.

        Args:
            decay: Weight of the past, once 1 − 1/k is above it.
        """
        if not self.sums:
            return
        self.updates += 1
        weight = self.last_weight(decay)
        if not self.moments:
            self.moments = [torch.zeros_like(total) for total in self.sums]
        for moment, total, count in zip(self.moments, self.sums, self.counts, strict=True):
            moment.mul_(1 - weight)
            if isinstance(count, Tensor):
                moment.add_(total * (weight / count))
            else:  # without a matrix of its own for the mean
                moment.add_(total, alpha=weight / count)
        self.sums, self.counts = [], []

    def last_weight(self, decay: float) -> float:
        """Weight with which the last update entered the running means."""
        return max(1 / self.updates, 1 - decay)

    def clear(self) -> None:
        """Forgets this step's sums."""
        self.sums, self.counts = [], []


class MatrixBlock(Block):
    """G ⊗ A of a layer with a matrix; its moments are [A, G].

    Args:
        layer: How the layer's calls become rows and signals.
        sharing: What to make of positions that share W.
        keep_rows: Whether to keep this step's rows and signals, for moments in another basis.
    """

    def __init__(
        self, layer: MatrixLayer, sharing: Sharing = "expand", keep_rows: bool = False
    ) -> None:
        super().__init__(layer.parameters)
        self.layer = layer
        self.sharing = sharing
        self.keep_rows = keep_rows
        self.rows: list[tuple[Tensor, list[Tensor], int]] = []

    def measure(self, calls: Sequence[Call], samples: int, mask: Tensor | None = None) -> None:
        """Adds Σ a aᵀ and Σ δ δᵀ."""
        parts = [self.layer.rows(c.module, c.inputs, c.gradients[0].shape) for c in calls]
        weights = self._weights(calls, parts, mask)
        rows = self._joined(parts)
        columns = [
            self._joined([self.layer.signals(c.module, c.gradients[i], c.inputs) for c in calls])
            for i in range(len(calls[0].gradients))
        ]
        if self.sharing == "reduce" and not self.layer.one_hot:
            rows, weights = averaged(rows, weights)
            columns = [signals.sum(1, keepdim=True) for signals in columns]
        count: float | Tensor
        if self.layer.one_hot:
            inputs = self.frequencies(rows, weights, calls)
            count = inputs.sum().clamp(min=1)
        else:
            count, inputs = counted(rows, weights)
        signals = torch.stack([second_moment(column) for column in columns]).sum(0)
        self._add([inputs, signals], [count, samples])
        if self.keep_rows:
            self.rows.append((rows, columns, samples))

    def _weights(
        self, calls: Sequence[Call], parts: list[Tensor], mask: Tensor | None
    ) -> Tensor | None:
        """1 for rows that count, else 0, [N, R] or [N, R, g]; None if all do."""
        weights = []
        for call, rows in zip(calls, parts, strict=True):
            weight = self.layer.present(call.inputs)
            if mask is not None:
                kept = kept_positions(rows, mask).to(call.gradients[0].dtype)
                weight = kept if weight is None else weight * kept.unsqueeze(-1)
            if weight is not None:
                weights.append(weight)
        return self._joined(weights) if weights else None

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """Several calls are further positions of the same weights."""
        if len(parts) == 1:
            return parts[0]
        if len({len(part) for part in parts}) > 1:
            if self.sharing == "reduce":
                raise ConfigurationError(
                    'sharing="reduce" needs calls of a shared layer to have batches of one size: '
                    'use sharing="expand"'
                )
            parts = [part.flatten(0, 1).unsqueeze(0) for part in parts]
        return torch.cat(parts, 1)

    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of ΣA and ΣG."""
        matrix = self.layer.matrix([p.detach() for p in self.parameters])
        *groups, outputs, inputs = matrix.shape
        if self.layer.one_hot:
            return [(inputs,), (outputs, outputs)]
        return [(*groups, inputs, inputs), (*groups, outputs, outputs)]

    def frequencies(self, indices: Tensor, weights: Tensor | None, calls: Sequence[Call]) -> Tensor:
        """Diagonal [V] of the second moment of one-hot rows: how often each occurs."""
        assert self.layer.weight is not None
        counts = self.layer.weight.new_zeros(self.layer.weight.shape[0])
        flat = indices.flatten()
        ones = counts.new_ones(1).expand(len(flat)) if weights is None else weights.flatten()
        counts.index_add_(0, flat, ones.to(counts.dtype))
        padding = getattr(calls[0].module, "padding_idx", None)
        if padding is not None:
            counts[padding] = 0
        return counts

    def clear(self) -> None:
        """Forgets this step's sums and rows."""
        super().clear()
        self.rows = []


class VectorBlock(Block):
    """Σₙ gₙ gₙᵀ / S of few parameters, whole or as its diagonal: scale and shift of a norm.

    Args:
        layer: How the layer's calls become per-sample gradients.
    """

    def __init__(self, layer: NormalisationLayer) -> None:
        super().__init__(layer.parameters)
        self.layer = layer
        self.whole = sum(p.numel() for p in layer.parameters) <= WHOLE_NORMALISATION

    def measure(self, calls: Sequence[Call], samples: int, mask: Tensor | None = None) -> None:
        """Adds Σ g gᵀ, or Σ g²; the gradients of samples that do not count are 0."""
        total: Tensor | None = None
        for i in range(len(calls[0].gradients)):
            parts = [self.layer.per_sample(c.module, c.inputs, c.gradients[i]) for c in calls]
            alike = len({len(part) for part in parts}) == 1
            gradients = at_least_single(torch.stack(parts).sum(0) if alike else torch.cat(parts))
            moment = gradients.T @ gradients if self.whole else gradients.square().sum(0)
            total = moment if total is None else total + moment
        assert total is not None
        self._add([total], [samples])

    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of the sum."""
        size = sum(p.numel() for p in self.parameters)
        return [(size, size) if self.whole else (size,)]


class FreeBlock(Block):
    """Parameters outside every known layer: a policy's log σ, a positional embedding.

    Args:
        parameter: The parameter.
    """

    def __init__(self, parameter: Tensor) -> None:
        super().__init__([parameter])
        self.whole = parameter.numel() <= WHOLE_FREE

    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of the sum."""
        size = self.parameters[0].numel()
        return [(size, size) if self.whole else (size,)]

    def measure_exactly(self, fisher: Tensor, samples: int) -> None:
        """Takes the block [P, P] of one batch, or its diagonal [P]: a mean over so many samples."""
        self._add([fisher * samples], [samples])

    def measure_total(self, gradient: Tensor, samples: int) -> None:
        """Takes Σₙ ∇ log pₙ at labels that the model drew.

        Scores of different samples are independent and have mean 0, so that the outer product of
        their sum is an unbiased estimate of the sum of their outer products. Scores at labels of
        the user's, the empirical kind, have another mean: with these it is an upper estimate.

        Args:
            gradient: The sum, of the parameter's shape.
            samples: Number of samples.
        """
        flat = gradient.flatten()
        self._add([torch.outer(flat, flat) if self.whole else flat.square()], [samples])
