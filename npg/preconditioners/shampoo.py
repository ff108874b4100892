"""Shampoo: a gradient times an inverse root of its second moment along every dimension."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npg.errors import NumericalError
from npg.linalg.matrix_roots import inverse_root
from npg.preconditioners.blocks import Partition
from npg.preconditioners.moments import BlockMoments, along_each

# A matrix without a root leaves its last one in use, but not for ever.
TOLERATED_FAILURES = 3


class ShampooRoots(BlockMoments):
    """G ×₁ (L₁ + ε I)^(−1/2k) ×₂ … ×ₖ (Lₖ + ε I)^(−1/2k) of every tensor, block by block.

    L_i is the sum, or a running mean without bias, of G_(i) G_(i)ᵀ.

    Args:
        states: A dictionary per tensor.
        partitions: The blocks of every tensor.
        decay: β of the running mean; 1 is the sum.
        epsilon: ε, relative to nothing.

    Reference:
        Gupta, Koren and Singer, "Shampoo: preconditioned stochastic tensor optimization", 2018.
    """

    names = ("moments", "moment_steps", "roots", "failures")

    def __init__(
        self,
        states: Sequence[dict[str, Any]],
        partitions: Sequence[Partition],
        decay: float,
        epsilon: float,
    ) -> None:
        super().__init__(states, partitions, decay)
        self.epsilon = epsilon

    @property
    def ready(self) -> bool:
        """Whether every tensor has roots."""
        return all("roots" in state for state in self.states)

    def refresh(self) -> None:
        """Computes the roots of the present moments, those of one size and order in one batch.

        Raises:
            NumericalError: If a root could not be found three times in a row.
        """
        alike: dict[tuple[Any, ...], list[tuple[int, int, Tensor]]] = {}
        found: list[list[Tensor | None]] = []
        for number, (state, partition) in enumerate(zip(self.states, self.partitions, strict=True)):
            found.append([None] * len(state["moments"]))
            scale = 1.0 if self.decay == 1 else 1 / (1 - self.decay ** state["moment_steps"])
            orders = [2 * len(shape) for shape in partition.shapes for _ in shape]
            for place, (moment, order) in enumerate(zip(state["moments"], orders, strict=True)):
                key = (moment.shape[-1], moment.dtype, moment.device, order)
                alike.setdefault(key, []).append((number, place, moment * scale))
        for (*_, order), members in alike.items():
            matrices = [moment for _, _, moment in members]
            roots = _roots(matrices, order, self.epsilon)
            for (number, place, _), root in zip(members, roots, strict=True):
                found[number][place] = root
        for state, its in zip(self.states, found, strict=True):
            if all(root is not None for root in its):
                state["roots"], state["failures"] = its, 0
            else:
                self._keep(state, its)

    def _keep(self, state: dict[str, Any], found: Sequence[Tensor | None]) -> None:
        """Goes on with the last roots, where there are any."""
        state["failures"] = state.get("failures", 0) + 1
        if state["failures"] >= TOLERATED_FAILURES or "roots" not in state:
            sizes = [
                len(m[0]) for m, root in zip(state["moments"], found, strict=True) if root is None
            ]
            raise NumericalError(
                f"moments of order {sizes} have had no root {state['failures']} times in a row at "
                f"epsilon={self.epsilon:g}: raise epsilon=, or look for gradients that are not "
                "finite"
            )

    def apply(
        self, gradients: list[Tensor], norms_of: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Multiplies by the roots.

        Args:
            gradients: Of the tensors' shapes.
            norms_of: Tensors of these shapes, to the norms of whose blocks the product's are
                stretched. Default: they keep their own.

        Returns:
            As many tensors.
        """
        result = []
        for i, (state, partition) in enumerate(zip(self.states, self.partitions, strict=True)):
            stacks = along_each(state["roots"], partition.cut(gradients[i]))
            stacks = [stack.to(gradients[i].dtype) for stack in stacks]
            if norms_of is not None:
                stacks = with_norms_of(stacks, partition.cut(norms_of[i]))
            result.append(partition.join(stacks))
        return result


def _roots(stacks: Sequence[Tensor], order: int, epsilon: float) -> list[Tensor | None]:
    """Inverse roots of stacks of equal matrices; one that has none spoils no other."""
    joined, report = inverse_root(torch.cat(list(stacks)), order, epsilon)
    if joined is not None and (report.rung == 0 or len(stacks) == 1):
        return list(joined.split([len(stack) for stack in stacks]))
    return [inverse_root(stack, order, epsilon)[0] for stack in stacks]


def with_norms_of(directions: Sequence[Tensor], lengths: Sequence[Tensor]) -> list[Tensor]:
    """Stretches every block to the norm of another.

    Args:
        directions: Stacks of blocks [k, *block].
        lengths: Stacks whose norms to take.

    Returns:
        The directions; a block of zeros stays one.
    """
    result = []
    for direction, other in zip(directions, lengths, strict=True):
        entries = list(range(1, direction.ndim))
        wanted, present = (
            torch.linalg.vector_norm(t, dim=entries, keepdim=True) for t in (other, direction)
        )
        result.append(direction * torch.where(present > 0, wanted / present, 0.0))
    return result
