"""Shampoo: a gradient times an inverse root of its second moment along every dimension."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npg.errors import NumericalError
from npg.linalg.matrix_roots import inverse_root
from npg.preconditioners.blocks import Partition

# A matrix without a root leaves its last one in use, but not for ever.
TOLERATED_FAILURES = 3


class ShampooRoots:
    """G ×₁ (L₁ + ε I)^(−1/2k) ×₂ … ×ₖ (Lₖ + ε I)^(−1/2k) of one tensor, block by block.

    L_i is the sum, or a running mean, of G_(i) G_(i)ᵀ, G_(i) the block unfolded along dimension i.
    All of it lives in a dictionary that the optimizer keeps as the parameter's state.

    Args:
        partition: The tensor's blocks.
        decay: β of a running mean without bias; 1 is the sum.
        epsilon: ε, relative to nothing.

    Reference:
        Gupta, Koren and Singer, "Shampoo: preconditioned stochastic tensor optimization", 2018.
    """

    def __init__(self, partition: Partition, decay: float, epsilon: float) -> None:
        self.partition = partition
        self.decay = decay
        self.epsilon = epsilon

    def update(self, state: dict[str, Any], gradient: Tensor) -> None:
        """Lets a gradient enter the moments.

        Args:
            state: Of the parameter; empty at first.
            gradient: Of the parameter's shape.
        """
        if "moments" not in state:
            wide = torch.promote_types(gradient.dtype, torch.float32)
            state["moments"] = [
                gradient.new_zeros(len(places), d, d, dtype=wide)
                for shape, places in self.partition.stacks.items()
                for d in shape
            ]
            state["moment_steps"] = 0
        state["moment_steps"] += 1
        moments = iter(state["moments"])
        for blocks in self.partition.cut(gradient):
            for i in range(1, blocks.ndim):
                moment = next(moments)
                turned = blocks.movedim(i, 1)
                unfolded = turned.reshape(*turned.shape[:2], -1).to(moment.dtype)
                keep = 1.0 if self.decay == 1 else self.decay
                weight = 1.0 if self.decay == 1 else 1 - self.decay
                moment.baddbmm_(unfolded, unfolded.mT, beta=keep, alpha=weight)

    def apply(self, state: dict[str, Any], gradient: Tensor) -> list[Tensor]:
        """Multiplies by the roots.

        Args:
            state: Of the parameter.
            gradient: Of the parameter's shape.

        Returns:
            Stacks of blocks, as :meth:`Partition.cut` makes them.
        """
        roots = iter(state["roots"])
        result = []
        for blocks in self.partition.cut(gradient):
            solved = blocks
            for i in range(1, blocks.ndim):
                root = next(roots)
                turned = solved.movedim(i, 1)
                unfolded = turned.reshape(*turned.shape[:2], -1).to(root.dtype)
                solved = (root @ unfolded).view(turned.shape).movedim(1, i)
            result.append(solved.to(gradient.dtype))
        return result


def refresh(tensors: Sequence[tuple[ShampooRoots, dict[str, Any]]]) -> None:
    """Computes the roots of the present moments, those of one size and order in one batch.

    Args:
        tensors: Each with the state of its parameter.

    Raises:
        NumericalError: If a root could not be found three times in a row.
    """
    alike: dict[tuple[Any, ...], list[tuple[int, int, Tensor]]] = {}
    found: list[list[Tensor | None]] = []
    for number, (roots, state) in enumerate(tensors):
        found.append([None] * len(state["moments"]))
        scale = 1.0 if roots.decay == 1 else 1 / (1 - roots.decay ** state["moment_steps"])
        orders = [2 * len(shape) for shape in roots.partition.shapes for _ in shape]
        for place, (moment, order) in enumerate(zip(state["moments"], orders, strict=True)):
            key = (moment.shape[-1], moment.dtype, moment.device, order, roots.epsilon)
            alike.setdefault(key, []).append((number, place, moment * scale))
    for (*_, order, epsilon), members in alike.items():
        matrices = [moment for _, _, moment in members]
        for (number, place, _), root in zip(members, _roots(matrices, order, epsilon), strict=True):
            found[number][place] = root
    for (roots, state), its in zip(tensors, found, strict=True):
        if all(root is not None for root in its):
            state["roots"], state["failures"] = its, 0
            continue
        state["failures"] = state.get("failures", 0) + 1
        if state["failures"] >= TOLERATED_FAILURES or "roots" not in state:
            sizes = [
                len(m[0]) for m, root in zip(state["moments"], its, strict=True) if root is None
            ]
            raise NumericalError(
                f"moments of order {sizes} have had no root {state['failures']} times in a row at "
                f"epsilon={roots.epsilon:g}: raise epsilon=, or look for gradients that are not "
                "finite"
            )


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
