"""The block-tridiagonal inverse of a chain of layers, kept up while it trains."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from npg.curvature.kronecker import Block, MatrixBlock
from npg.curvature.kronecker.layers import LinearLayer
from npg.errors import ConfigurationError, NumericalError
from npg.preconditioners.assignment import Assignment
from npg.preconditioners.exchanged_inverses import TOLERATED_FAILURES, on_device_of
from npg.preconditioners.kfac import KroneckerInverse, Rows
from npg.preconditioners.kronecker_products import given_gradients
from npg.preconditioners.tridiagonal import TridiagonalInverse
from npg.ranks import sum_over_ranks


class ChainInverse(KroneckerInverse):
    """F̂⁻¹g with :class:`TridiagonalInverse`, from running means of neighbouring layers' moments.

    Args:
        blocks: One per layer, in the order of the chain, with ``keep_rows``; whether the layers
            form one is for :class:`npg.preconditioners.chain_check.ChainCheck` to find out.
        distributed: Whether the moments are those of all ranks of ``torch.distributed``, which
            then have to call :meth:`follow` together.
        decay: Weight of the past in the moments' running means.
        assignment: ``"communication-optimal"``, but that every rank makes the inverse of the chain,
            which cannot be shared out.

    Attributes:
        input_pairs: E[a_l a_{l+1}ᵀ] per neighbours.
        signal_pairs: E[δ_l δ_{l+1}ᵀ] per neighbours.
        inverse: The one in use; None before the first.

    Raises:
        ConfigurationError: If a block is not that of a linear layer, or the assignment is another.

    Reference:
        Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate
        curvature", 2015, section 4.3.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        distributed: bool = False,
        decay: float = 0.95,
        assignment: Assignment = "communication-optimal",
    ) -> None:
        super().__init__(blocks, distributed=distributed, decay=decay, assignment=assignment)
        if assignment == "memory-optimal":
            raise ConfigurationError(
                'inverse="block-tridiagonal" is one inverse of all layers, which every rank makes '
                'for itself: use assignment="communication-optimal"'
            )
        self.layers: list[MatrixBlock] = []
        for block in blocks:
            if not (isinstance(block, MatrixBlock) and isinstance(block.layer, LinearLayer)):
                shapes = ", ".join(str(tuple(p.shape)) for p in block.parameters)
                raise ConfigurationError(
                    'inverse="block-tridiagonal" is for chains of nn.Linear layers; the parameters '
                    f'of shape {shapes} belong to none: use inverse="block-diagonal", or '
                    "parameters="
                )
            self.layers.append(block)
        self.input_pairs: list[Tensor] = []
        self.signal_pairs: list[Tensor] = []
        self.inverse: TridiagonalInverse | None = None
        self._failed = 0

    def follow(self, rows: Sequence[Rows], decay: float) -> None:
        """Lets the rows of this step enter the moments of neighbours.

        Args:
            rows: Of the step that was taken in, per block.
            decay: As the moments were updated with.

        Raises:
            ConfigurationError: If a layer was used several times, or not on the whole batch, or
                not all samples count.
        """
        shapes = [[given.shape[:2] for given, _, _ in own] for own in rows]
        alike = all(own == shapes[0] for own in shapes)
        missing = not shapes[0] and not self.distributed
        if not alike or missing or any(positions != 1 for _, positions in shapes[0]):
            raise ConfigurationError(
                'inverse="block-tridiagonal" is for chains of layers without weight sharing, each '
                'used once on the whole batch: use inverse="block-diagonal"'
            )
        if any(len(given) != count for given, _, count in rows[0]):
            raise ConfigurationError(
                'inverse="block-tridiagonal" takes no mask: leave samples that do not count out of '
                'the batch, or use inverse="block-diagonal"'
            )
        sums, samples = self._products(rows)
        if self.distributed:
            *sums, samples = sum_over_ranks([*sums, samples])
        half = len(self.layers) - 1
        means = [s / samples for s in sums[:half]], [s / samples for s in sums[half:]]
        if self.inverse is None and not self.input_pairs:
            self.input_pairs, self.signal_pairs = means
        elif half:
            weight = self.layers[0].last_weight(decay)
            torch._foreach_lerp_(self.input_pairs, means[0], weight)
            torch._foreach_lerp_(self.signal_pairs, means[1], weight)

    def _products(self, rows: Sequence[Rows]) -> tuple[list[Tensor], Tensor]:
        """Σ a_l a_{l+1}ᵀ of all neighbours, then Σ δ_l δ_{l+1}ᵀ; and the number of samples."""
        inputs: list[Tensor] = []
        signals: list[Tensor] = []
        for i, (left, right) in enumerate(pairwise(self.layers)):
            a, g = left.moments
            a_next, g_next = right.moments
            inputs.append(a.new_zeros(len(a), len(a_next)))
            signals.append(g.new_zeros(len(g), len(g_next)))
            for (x, deltas, _), (x_next, deltas_next, _) in zip(rows[i], rows[i + 1], strict=True):
                inputs[-1] += _product(x, x_next)
                for d, e in zip(deltas, deltas_next, strict=True):
                    signals[-1] += _product(d, e)
        samples = self.layers[0].moments[0].new_tensor(float(sum(count for _, _, count in rows[0])))
        return inputs + signals, samples

    def refresh(self, damping: float | None = None) -> None:
        """Factorises the present moments.

        Args:
            damping: λ, above 0. Default: the last one.

        Raises:
            NumericalError: If the chain's covariance was not positive definite three times in
                a row, or not the first time.
        """
        damping = self.damping if damping is None else damping
        if not all(block.moments for block in self.blocks):
            return
        inputs, signals = zip(*(block.moments for block in self.blocks), strict=True)
        try:
            self.inverse = TridiagonalInverse(
                inputs, signals, self.input_pairs, self.signal_pairs, damping
            )
        except NumericalError as error:
            self.kept += 1
            self._failed += 1
            if self.inverse is None or self._failed >= TOLERATED_FAILURES:
                raise NumericalError(f"{self._failed} times in a row: {error}") from error
            return
        self._failed = 0
        self.damping = damping
        self.climbed += self.inverse.precision != inputs[0].dtype

    def write(self, gradients: Mapping[Tensor, Tensor], out: Mapping[Tensor, Tensor]) -> None:
        """Multiplies by the inverse of the whole chain; by 1 before the first factorisation.

        Args:
            gradients: A gradient per parameter; one that is missing counts as zero.
            out: A tensor for each of the parameters that have gradients, to write to.
        """
        solved = dict(gradients)
        if self.inverse is not None:
            given = [block.layer.matrix(given_gradients(block, gradients)) for block in self.layers]
            for block, matrix in zip(self.layers, self.inverse.apply(given), strict=True):
                solved.update(zip(block.parameters, block.layer.gradients(matrix), strict=True))
        torch._foreach_copy_(list(out.values()), [solved[p] for p in out])

    def own_state(self) -> dict[str, Any]:
        """What a resumed run must go on with: tensors, numbers, lists and dictionaries of them."""
        return {
            **super().own_state(),
            "failed": self._failed,
            "input_pairs": [pair.clone() for pair in self.input_pairs],
            "signal_pairs": [pair.clone() for pair in self.signal_pairs],
            "chain": None if self.inverse is None else self.inverse.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave, each tensor on the blocks' device."""
        super().load_state_dict(state)
        self._failed = int(state["failed"])
        first = self.layers[0]
        self.input_pairs = [on_device_of(first, pair) for pair in state["input_pairs"]]
        self.signal_pairs = [on_device_of(first, pair) for pair in state["signal_pairs"]]
        self.inverse = (
            None
            if state["chain"] is None
            else TridiagonalInverse.restored(state["chain"], first.parameters[0].device)
        )


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Σ x yᵀ over N and R."""
    return left.flatten(0, 1).T @ right.flatten(0, 1)
