"""EKFAC: Kronecker-factored eigenbases, with second moments of their own in them."""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from npg.curvature.kronecker import Block, MatrixBlock
from npg.linalg.inverses import positive_eigenbasis
from npg.preconditioners.kfac import KroneckerInverse

# Per-sample gradients of layers that share weights are formed for so many numbers at a time.
CHUNK = 2**22


class EigenbasisInverse(KroneckerInverse):
    """Q_G ((Q_Gᵀ V Q_A) / (S + λ)) Q_Aᵀ per layer, S the second moments of gradients in that basis.

    Q_A and Q_G are the eigenvectors of K-FAC's factors. S = E[(Q_Gᵀ (Σ_r δ aᵀ) Q_A)²] is the
    diagonal for which this form is nearest to the Fisher matrix; K-FAC has λ_G λ_Aᵀ in its place.
    A new basis takes S over as if what it measured had been uncorrelated in the old one. Blocks
    without factors, and embeddings, are inverted as in K-FAC.

    Args:
        blocks: Whose moments to invert; matrix blocks with ``keep_rows``.

    Reference:
        George et al., "Fast approximate natural gradient descent in a Kronecker-factored
        eigenbasis", 2018.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__(blocks)
        self.bases: dict[int, tuple[Tensor, Tensor]] = {}
        self.scales: dict[int, Tensor] = {}

    def follow(self) -> None:
        """Lets the rows of this step enter the second moments of the present bases."""
        for i, block in enumerate(self.blocks):
            if not _has_basis(block):
                continue
            if i not in self.bases:
                self._diagonalise(i, block)
            if i in self.bases and block.rows:
                fresh = _moments_in_basis(block, *self.bases[i])
                if i in self.scales:
                    self.scales[i].lerp_(fresh, block.weight)
                else:
                    self.scales[i] = fresh
            block.rows = []

    def refresh(self, damping: float) -> None:
        """Diagonalises the present factors, and inverts the blocks that have none.

        Args:
            damping: λ, above 0.

        Raises:
            NumericalError: If a block could not be inverted three times in a row.
        """
        super().refresh(damping)
        for i, block in enumerate(self.blocks):
            if _has_basis(block) and block.moments:
                self._diagonalise(i, block)

    def _factors(self, block: Block, damping: float) -> list[Tensor]:
        return [] if _has_basis(block) else super()._factors(block, damping)

    def _diagonalise(self, i: int, block: MatrixBlock) -> None:
        """Takes the factors' eigenvectors as the new bases, or keeps the old ones."""
        found = []
        for moment in block.moments:
            eigen, report = positive_eigenbasis(moment)
            self.climbed += report.rung > 0
            if eigen is None:
                self._keep(i)
                return
            found.append(eigen[1])
        self.failures[i] = 0
        inputs, signals = found
        if i in self.scales:
            old_inputs, old_signals = self.bases[i]
            turned = (signals.mT @ old_signals).square() @ self.scales[i]
            self.scales[i] = turned @ (old_inputs.mT @ inputs).square()
        self.bases[i] = (inputs, signals)
        self.inverses[i] = [inputs, signals]

    def _solve(self, i: int, gradients: Sequence[Tensor]) -> list[Tensor]:
        block = self.blocks[i]
        if not _has_basis(block):
            return super()._solve(i, gradients)
        inputs, signals = self.bases[i]
        inner = signals.mT @ block.layer.matrix(gradients) @ inputs
        inner = inner / (self.scales[i] + self.damping)
        return block.layer.gradients(signals @ inner @ inputs.mT)

    def state(self) -> dict[str, Any]:
        """What a resumed run must go on with."""
        return {**super().state(), "bases": self.bases, "scales": self.scales}


def _has_basis(block: Block) -> TypeGuard[MatrixBlock]:
    return isinstance(block, MatrixBlock) and not block.layer.one_hot


def _moments_in_basis(block: MatrixBlock, inputs: Tensor, signals: Tensor) -> Tensor:
    """Mean over this step's samples of (Q_Gᵀ (Σ_r δ aᵀ) Q_A)² [(g,) o, d]."""
    total = torch.zeros_like(block.layer.matrix(block.parameters))
    count = 0
    for rows, columns, samples in block.rows:
        turned_rows = _grouped(rows) @ inputs.unsqueeze(-3)
        for column in columns:
            turned = _grouped(column) @ signals.unsqueeze(-3)
            per_position = samples == rows.shape[0] * rows.shape[1]
            total += _sum_of_squares(turned_rows, turned, per_position)
        count += samples
    return total / count


def _grouped(values: Tensor) -> Tensor:
    """[N, R, g, d] to [g, N, R, d]; without groups as it is."""
    return values.permute(2, 0, 1, 3) if values.ndim == 4 else values


def _sum_of_squares(rows: Tensor, signals: Tensor, per_position: bool) -> Tensor:
    """Σₙ (Σ_r δ aᵀ)² from [(g,) N, R, d] and [(g,) N, R, o]."""
    if per_position or rows.shape[-2] == 1:
        return signals.flatten(-3, -2).square().mT @ rows.flatten(-3, -2).square()
    size = max(1, CHUNK // (rows.shape[-1] * signals.shape[-1]))
    pieces = zip(rows.split(size, -3), signals.split(size, -3), strict=True)
    parts = [(s.mT @ r).square().sum(-3) for r, s in pieces]
    return torch.stack(parts).sum(0)
