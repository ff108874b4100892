"""EKFAC: Kronecker-factored eigenbases, with second moments of their own in them."""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from npg.curvature.kronecker import Block, MatrixBlock
from npg.errors import ConfigurationError
from npg.linalg.inverses import positive_eigenbasis
from npg.preconditioners.assignment import Assignment
from npg.preconditioners.exchanged_inverses import on_device_of
from npg.preconditioners.kfac import KroneckerInverse, Rows
from npg.ranks import sum_over_ranks

# Per-sample gradients of layers that share weights are formed for so many numbers at a time.
CHUNK = 2**22


class EigenbasisInverse(KroneckerInverse):
    """Q_G ((Q_Gᵀ V Q_A) / (S + λ)) Q_Aᵀ per layer, S the second moments of gradients in that basis.

    Q_A and Q_G are the eigenvectors of K-FAC's factors. S = E[(Q_Gᵀ (Σ_r δ aᵀ) Q_A)²] is the
    diagonal for which this form is nearest to the Fisher matrix; K-FAC has λ_G λ_Aᵀ in its place.
    The exact Fisher matrix sums the squares of its columns. A new basis takes S over as if what it
    measured had been uncorrelated in the old one. Blocks without factors, and embeddings, are
    inverted as in K-FAC.

    Args:
        blocks: Whose moments to invert; matrix blocks with ``keep_rows``.
        distributed: Whether the moments are those of all ranks of ``torch.distributed``, which
            then have to call :meth:`follow` together.
        decay: Weight of the past in the moments' running means.
        assignment: ``"communication-optimal"``: every rank measures in all bases.

    Attributes:
        scales: S [(g,) o, d] of the blocks that have bases, by their number.

    Raises:
        ConfigurationError: If the assignment is another.

    Reference:
        George et al., "Fast approximate natural gradient descent in a Kronecker-factored
        eigenbasis", 2018.
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
                "eigenbasis=True measures every rank's gradients in the bases of all layers: use "
                'assignment="communication-optimal"'
            )
        self.scales: dict[int, Tensor] = {}

    def follow(self, rows: Sequence[Rows], decay: float) -> None:
        """Lets the rows of this step enter the second moments of the present bases.

        Args:
            rows: Of the step that was taken in, per block.
            decay: As the moments were updated with.
        """
        due: list[tuple[int, MatrixBlock]] = []
        for i, block in enumerate(self.blocks):
            if not (_has_basis(block) and block.moments and (self.distributed or rows[i])):
                continue
            due.append((i, block))
        self._diagonalise([i for i, _ in due if not self.inverses[i]], self.damping)
        measured = [(i, *_moments_in_basis(block, rows[i], *self.inverses[i])) for i, block in due]
        totals, counts = [m[1] for m in measured], [m[2] for m in measured]
        if self.distributed:
            totals, counts = sum_over_ranks(totals), sum_over_ranks(counts)
        for (i, _, _), total, count in zip(measured, totals, counts, strict=True):
            weight = self.blocks[i].last_weight(decay)
            mean = total / count
            if i not in self.scales:
                self.scales[i] = mean
            else:  # products of finite numbers may be none; a layer no rank used has a count of 0
                fresh = torch.where(torch.isfinite(mean), mean, self.scales[i])
                self.scales[i].lerp_(fresh, weight)

    def refresh(self, damping: float | None = None) -> None:
        """Diagonalises the present factors, and inverts the blocks that have none.

        Args:
            damping: λ, above 0. Default: the last one.

        Raises:
            NumericalError: If a block could not be inverted three times in a row.
        """
        damping = self.damping if damping is None else damping
        self._diagonalise(
            [i for i, b in enumerate(self.blocks) if _has_basis(b) and self.inverses[i]], damping
        )
        super().refresh(damping)

    def redamp(self, damping: float) -> None:
        """Takes another λ in the present bases.

        Args:
            damping: λ, above 0.
        """
        super().refresh(damping)

    def _inverts(self, block: Block) -> bool:
        return not _has_basis(block)

    def _diagonalise(self, places: Sequence[int], damping: float) -> None:
        """Takes the factors' eigenvectors as the new bases of blocks, or keeps the old ones."""
        if not places:
            return
        climbed = self.climbed
        found = {i: self._bases(self.blocks[i]) for i in places if self.shares.mine(i)}
        settled = self._settled(places, found, climbed, damping, symmetric=False)
        for i, bases in settled.items():
            if i in self.scales:
                # The diagonal, in the new basis, of diag(S) in the old one.
                turn_inputs, turn_signals = (
                    new.mT @ old for new, old in zip(bases, self.inverses[i], strict=True)
                )
                self.scales[i] = turn_signals.square() @ self.scales[i] @ turn_inputs.square().mT
            self.inverses[i] = bases

    def _bases(self, block: Block) -> list[Tensor]:
        """Eigenvectors of the block's moments, as far as they can be had."""
        found = []
        for moment in block.moments:
            eigen, report = positive_eigenbasis(moment)
            self.climbed += report.rung > 0
            if eigen is None:
                break
            found.append(eigen[1])
        return found

    def _solve(self, i: int, gradients: Sequence[Tensor], out: list[Tensor]) -> None:
        block = self.blocks[i]
        if not (_has_basis(block) and self.inverses[i]):
            super()._solve(i, gradients, out)
            return
        inputs, signals = self.inverses[i]
        inner = signals.mT @ block.layer.matrix(gradients) @ inputs
        inner = inner / (self.scales[i] + self.damping)
        torch._foreach_copy_(out, block.layer.gradients(signals @ inner @ inputs.mT))

    def own_state(self) -> dict[str, Any]:
        """What a resumed run must go on with; ``inverses`` holds the bases."""
        scales = {i: scale.clone() for i, scale in self.scales.items()}
        return {**super().own_state(), "scales": scales}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave, each tensor on its block's device."""
        super().load_state_dict(state)
        self.scales = {
            int(i): on_device_of(self.blocks[int(i)], scale) for i, scale in state["scales"].items()
        }


def _has_basis(block: Block) -> TypeGuard[MatrixBlock]:
    return isinstance(block, MatrixBlock) and not block.layer.one_hot


def _moments_in_basis(
    block: MatrixBlock, rows: Rows, inputs: Tensor, signals: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum over samples of (Q_Gᵀ (Σ_r δ aᵀ) Q_A)² [(g,) o, d], and how many samples these were."""
    matrix = block.layer.matrix([p.detach() for p in block.parameters])
    total = torch.zeros_like(matrix, dtype=inputs.dtype)
    count = 0
    for given, columns, samples in rows:
        turned_rows = _grouped(given.to(inputs.dtype)) @ inputs.unsqueeze(-3)
        per_position = samples == given.shape[0] * given.shape[1]
        for column in columns:
            turned = _grouped(column.to(inputs.dtype)) @ signals.unsqueeze(-3)
            total += _sum_of_squares(turned_rows, turned, per_position)
        count += samples
    return total, total.new_tensor(count)


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
