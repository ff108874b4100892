"""K-FAC: a gradient times the inverse of G ⊗ A, layer by layer."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from npg.curvature.kronecker import Block, KroneckerFisher, MatrixBlock
from npg.linalg import empty_flat, split
from npg.linalg.inverses import positive_inverse
from npg.linalg.kronecker import factored_damping
from npg.preconditioners.assignment import Assignment
from npg.preconditioners.base import Preconditioner
from npg.preconditioners.exchanged_inverses import ExchangedInverses
from npg.preconditioners.kronecker_products import given_gradients, narrowed, sandwich

# Rows, signals and number of samples of each batch of one step, see MatrixBlock.
Rows = list[tuple[Tensor, list[Tensor], int]]


class KroneckerInverse(ExchangedInverses, Preconditioner[KroneckerFisher, Mapping[Tensor, Tensor]]):
    """(G + √λ/π I)⁻¹ V (A + π √λ I)⁻¹ per layer, π = √(mean eigenvalue of A / that of G).

    Blocks without factors are inverted with λ as they are: whole, or by their diagonal.

    Args:
        blocks: Whose moments to invert.
        distributed: Whether the moments are those of all ranks of ``torch.distributed``.
        decay: Weight of the past in the moments' running means, see :meth:`update`.
        assignment: Who keeps the inverses that the ranks share out, see
            :class:`npg.preconditioners.assignment.Shares`.
        dtype: What layers' inverses are kept in, see
            :func:`npg.preconditioners.kronecker_products.narrowed`. Default: their moments' dtype.

    Attributes:
        damping: λ of the inverses in use.
        climbed: Factorisations that needed more than their own precision.
        kept: Times that an old inverse stayed in use.

    Reference:
        Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate
        curvature", 2015, sections 4.2 and 6.3.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        distributed: bool = False,
        decay: float = 0.95,
        assignment: Assignment = "communication-optimal",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(blocks, distributed=distributed, assignment=assignment, dtype=dtype)
        self.decay = decay

    @property
    def ready(self) -> bool:
        """Whether there is anything to precondition by."""
        return self.damping > 0

    def redamp(self, damping: float) -> None:
        """Inverts what is inverted now with another λ.

        Args:
            damping: λ, above 0.
        """
        self.refresh(damping)

    def update(self, statistics: KroneckerFisher) -> None:
        """Lets what an estimator measured in this step enter the blocks' moments.

        Args:
            statistics: Whose blocks these are.
        """
        rows = self.rows()
        statistics.update(self.decay)
        self.follow(rows, self.decay)

    def refresh(self, damping: float | None = None) -> None:
        """Inverts the blocks' present moments; equal shapes go through one call.

        Each rank inverts its share.

        Args:
            damping: λ, above 0. Default: the last one.

        Raises:
            NumericalError: If a block could not be inverted three times in a row.
        """
        damping = self.damping if damping is None else damping
        asked = [i for i, block in enumerate(self.blocks) if block.moments and self._inverts(block)]
        damped: list[list[Tensor]] = [[] for _ in self.blocks]
        for i in asked:
            if self.shares.mine(i):
                damped[i] = self._factors(self.blocks[i], damping)
        climbed = self.climbed
        groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for i, factors in enumerate(damped):
            for j, factor in enumerate(factors):
                groups.setdefault((factor.ndim, factor.shape[-1]), []).append((i, j))
        fresh: list[list[Tensor | None]] = [[None] * len(factors) for factors in damped]
        for (ndim, _), places in groups.items():
            if ndim == 1:
                for i, j in places:
                    fresh[i][j] = damped[i][j].reciprocal()
                continue
            for (i, j), inverse in zip(
                places, self._inverted([damped[i][j] for i, j in places]), strict=True
            ):
                fresh[i][j] = inverse
        found = {i: [m for m in new if m is not None] for i, new in enumerate(fresh) if new}
        settled = self._settled(asked, found, climbed, damping)
        if self.dtype is not None:
            settled = narrowed(self.blocks, settled, damping, self.dtype)
        for i, inverses in settled.items():
            self.inverses[i] = inverses
        self.damping = damping

    def _inverts(self, block: Block) -> bool:
        """Whether :meth:`refresh` has to invert the block's moments."""
        return True

    def _factors(self, block: Block, damping: float) -> list[Tensor]:
        """The block's moments with their damping added: what is to be inverted."""
        if isinstance(block, MatrixBlock):
            inputs, signals = block.moments
            shares = factored_damping(inputs, signals, damping)
            return [_plus(m, share) for m, share in zip(block.moments, shares, strict=True)]
        return [_plus(moment, moment.new_tensor(damping)) for moment in block.moments]

    def _inverted(self, matrices: list[Tensor]) -> list[Tensor | None]:
        """Inverts matrices [d, d] or [g, d, d] of one d together."""
        stacked = [m if m.ndim == 3 else m.unsqueeze(0) for m in matrices]
        inverses, reports = positive_inverse(
            stacked[0] if len(stacked) == 1 else torch.cat(stacked)
        )
        self.climbed += sum(report.rung > 0 for report in reports)
        result: list[Tensor | None] = []
        start = 0
        for matrix, stack in zip(matrices, stacked, strict=True):
            stop = start + len(stack)
            if any(report.failed for report in reports[start:stop]):
                result.append(None)
            else:
                inverse = inverses[start:stop].reshape(matrix.shape)
                # A slice of a stack may begin anywhere, and where a matrix begins in memory decides
                # which kernel multiplies it on some processors: one of its own begins as its copy
                # in a checkpoint does, from which training has to go on bit for bit.
                result.append(inverse.clone() if len(stacked) > 1 else inverse)
            start = stop
        return result

    def rows(self) -> list[Rows]:
        """What each block kept of this step, to be asked for before the moments are updated."""
        return [block.rows if isinstance(block, MatrixBlock) else [] for block in self.blocks]

    def follow(self, rows: Sequence[Rows], decay: float) -> None:
        """Keeps what is estimated beside the blocks' moments up with an update of these.

        Args:
            rows: Of the step that was taken in, per block.
            decay: As the moments were updated with.
        """

    def apply(self, gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Multiplies by the inverse, without reading from the device.

        Args:
            gradients: A gradient per parameter; one that a block misses counts as zero.

        Returns:
            F̂⁻¹g per parameter; the gradient itself where a block has no inverse yet.
        """
        like = list(gradients.values())
        return dict(zip(gradients, split(self.flat(gradients), like), strict=True))

    def flat(self, gradients: Mapping[Tensor, Tensor], out: Tensor | None = None) -> Tensor:
        """The same as one vector, in the order of the gradients.

        Args:
            gradients: As for :meth:`apply`.
            out: Where to write it, [P] and contiguous. Default: a new tensor.

        Returns:
            F̂⁻¹g [P].
        """
        like = list(gradients.values())
        out = empty_flat(like) if out is None else out
        self.write(gradients, dict(zip(gradients, split(out, like), strict=True)))
        return out

    def write(self, gradients: Mapping[Tensor, Tensor], out: Mapping[Tensor, Tensor]) -> None:
        """The same into given tensors.

        Args:
            gradients: As for :meth:`apply`.
            out: A contiguous tensor for each of the parameters that have gradients.
        """
        for i, block in enumerate(self.blocks):
            places = [out.get(p) for p in block.parameters]
            if all(place is None for place in places) or not self.shares.kept(i):
                continue
            given = given_gradients(block, gradients)
            targets = [
                g if place is None else place for g, place in zip(given, places, strict=True)
            ]
            kind = self.inverses[i][0].dtype if self.inverses[i] else targets[0].dtype
            if all(t.dtype == kind for t in [*given, *targets]):
                self._solve(i, given, targets)
            else:  # inverses may be wider than the gradients, or narrower
                cast = [g.to(kind) for g in given]
                solved = [torch.empty_like(g) for g in cast]
                self._solve(i, cast, solved)
                torch._foreach_copy_(targets, solved)
        if self.shares.memory_optimal:
            self.shares.fill(
                {
                    i: [out[p] for p in block.parameters if p in out]
                    for i, block in enumerate(self.blocks)
                }
            )

    def _solve(self, i: int, gradients: Sequence[Tensor], out: list[Tensor]) -> None:
        """Multiplies the gradients of block ``i`` by its inverse."""
        block, inverses = self.blocks[i], self.inverses[i]
        if not inverses:
            torch._foreach_copy_(out, list(gradients))
        elif isinstance(block, MatrixBlock):
            sandwich(block.layer, inverses, gradients, out)
        else:
            (inverse,) = inverses
            flat = torch.cat([g.flatten() for g in gradients])
            solved = inverse * flat if inverse.ndim == 1 else inverse @ flat
            torch._foreach_copy_(out, split(solved, block.parameters))


def _plus(moment: Tensor, damping: Tensor) -> Tensor:
    """moment + damping · I."""
    if moment.ndim == 1:
        return moment + damping
    damped = moment.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping.unsqueeze(-1))
    return damped
