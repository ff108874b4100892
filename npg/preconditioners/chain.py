"""The block-tridiagonal inverse of a chain of layers, kept up while it trains."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from npg.curvature.kronecker import Block, MatrixBlock
from npg.curvature.kronecker.layers import LinearLayer
from npg.errors import ConfigurationError
from npg.preconditioners.kfac import KroneckerInverse, given_gradients
from npg.preconditioners.tridiagonal import TridiagonalInverse


class ChainInverse(KroneckerInverse):
    """F̂⁻¹g with :class:`TridiagonalInverse`, from running means of neighbouring layers' moments.

    Args:
        blocks: One per layer, in the order of the chain, with ``keep_rows``.

    Raises:
        ConfigurationError: If a block is not that of a linear layer.

    Reference:
        Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate
        curvature", 2015, section 4.3.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__(blocks)
        for block in blocks:
            if not (isinstance(block, MatrixBlock) and isinstance(block.layer, LinearLayer)):
                shapes = ", ".join(str(tuple(p.shape)) for p in block.parameters)
                raise ConfigurationError(
                    'inverse="block-tridiagonal" is for chains of nn.Linear layers; the parameters '
                    f'of shape {shapes} belong to none: use inverse="block-diagonal", or '
                    "parameters="
                )
        self.input_pairs: list[Tensor] = []
        self.signal_pairs: list[Tensor] = []
        self.inverse: TridiagonalInverse | None = None

    def follow(self) -> None:
        """Lets the rows of this step enter the moments of neighbours."""
        layers = [block for block in self.blocks if isinstance(block, MatrixBlock)]
        if not all(block.rows for block in layers):
            return
        first = layers[0].rows
        same = all(
            [r.shape[:2] for r, _, _ in block.rows] == [r.shape[:2] for r, _, _ in first]
            for block in layers
        )
        if not same or any(rows.shape[1] != 1 for rows, _, _ in first):
            raise ConfigurationError(
                'inverse="block-tridiagonal" is for chains of layers without weight sharing, each '
                'used once on the whole batch: use inverse="block-diagonal"'
            )
        input_pairs, signal_pairs = [], []
        for left, right in pairwise(layers):
            inputs, signals, positions, samples = [], [], 0, 0
            for (a, deltas, count), (a_next, deltas_next, _) in zip(
                left.rows, right.rows, strict=True
            ):
                inputs.append(_product(a, a_next))
                signals += [_product(d, e) for d, e in zip(deltas, deltas_next, strict=True)]
                positions += len(a)
                samples += count
            input_pairs.append(torch.stack(inputs).sum(0) / positions)
            signal_pairs.append(torch.stack(signals).sum(0) / samples)
        weight = layers[0].weight
        if self.input_pairs:
            torch._foreach_lerp_(self.input_pairs, input_pairs, weight)
            torch._foreach_lerp_(self.signal_pairs, signal_pairs, weight)
        else:
            self.input_pairs, self.signal_pairs = input_pairs, signal_pairs
        for block in layers:
            block.rows = []

    def refresh(self, damping: float) -> None:
        """Factorises the present moments.

        Args:
            damping: λ, above 0.

        Raises:
            NumericalError: If the chain's covariance is not positive definite.
        """
        self.damping = damping
        if not all(block.moments for block in self.blocks):
            return
        inputs, signals = zip(*(block.moments for block in self.blocks), strict=True)
        self.inverse = TridiagonalInverse(
            inputs, signals, self.input_pairs, self.signal_pairs, damping
        )
        self.climbed += self.inverse.precision != inputs[0].dtype

    def apply(self, gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Multiplies by the inverse of the whole chain.

        Args:
            gradients: A gradient per parameter; one that is missing counts as zero.

        Returns:
            F̂⁻¹g per parameter; the gradients themselves before the first factorisation.
        """
        if self.inverse is None:
            return dict(gradients)
        blocks = [block for block in self.blocks if isinstance(block, MatrixBlock)]
        matrices = [block.layer.matrix(given_gradients(block, gradients)) for block in blocks]
        result: dict[Tensor, Tensor] = {}
        for block, solved in zip(blocks, self.inverse.apply(matrices), strict=True):
            result.update(zip(block.parameters, block.layer.gradients(solved), strict=True))
        return {p: result[p] for p in gradients}

    def state(self) -> dict[str, Any]:
        """What a resumed run must go on with."""
        return {
            **super().state(),
            "input_pairs": self.input_pairs,
            "signal_pairs": self.signal_pairs,
            "inverse": self.inverse,
        }


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Σ x yᵀ over N and R."""
    return left.flatten(0, 1).T @ right.flatten(0, 1)
