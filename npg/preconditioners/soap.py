"""The slowly turning eigenbasis of Shampoo's moments, in which SOAP runs Adam."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from npg.errors import NumericalError
from npg.linalg.inverses import positive_eigenbasis
from npg.preconditioners.blocks import Partition


class EigenBasis:
    """Bases Q_i of E[G_(i) G_(i)ᵀ] along every dimension of every block of one tensor.

    The first are eigenvectors; later ones are those after a step of orthogonal iteration, which
    follows a matrix that changes slowly at a fraction of the cost.

    Args:
        partition: The tensor's blocks. A dimension of 1 has no basis.
        decay: β of the moments' running mean.

    Reference:
        Vyas et al., "SOAP: improving and stabilizing Shampoo using Adam", 2024.
    """

    def __init__(self, partition: Partition, decay: float) -> None:
        self.partition = partition
        self.decay = decay

    def update(self, state: dict[str, Any], gradient: Tensor) -> None:
        """Lets a gradient enter the moments.

        Args:
            state: Of the parameter; empty at first.
            gradient: Of the parameter's shape.
        """
        stacks = self.partition.cut(gradient)
        if "moments" not in state:
            wide = torch.promote_types(gradient.dtype, torch.float32)
            state["moments"] = [
                blocks.new_zeros(len(blocks), d, d, dtype=wide)
                for blocks in stacks
                for d in blocks.shape[1:]
            ]
        moments = iter(state["moments"])
        for blocks in stacks:
            for i in range(1, blocks.ndim):
                moment, rows = next(moments), _unfolded(blocks, i)
                rows = rows.to(moment.dtype)
                moment.baddbmm_(rows, rows.mT, beta=self.decay, alpha=1 - self.decay)

    def begin(self, state: dict[str, Any]) -> None:
        """Takes the eigenvectors of the moments, largest eigenvalues first.

        Args:
            state: Of the parameter.

        Raises:
            NumericalError: If there are none.
        """
        bases = []
        for moment in state["moments"]:
            found, _ = positive_eigenbasis(moment)
            if found is None:
                raise NumericalError(
                    f"a moment of {list(moment.shape)} has no eigenvectors: look for gradients "
                    "that are not finite"
                )
            bases.append(found[1].flip(-1))
        state["bases"] = bases

    def into(self, state: dict[str, Any], stacks: Sequence[Tensor]) -> list[Tensor]:
        """Turns stacks of blocks into the bases."""
        return self._turned(state, stacks, transposed=True)

    def back(self, state: dict[str, Any], stacks: Sequence[Tensor]) -> list[Tensor]:
        """Turns stacks of blocks out of the bases."""
        return self._turned(state, stacks, transposed=False)

    def _turned(
        self, state: dict[str, Any], stacks: Sequence[Tensor], transposed: bool
    ) -> list[Tensor]:
        bases, result = iter(state["bases"]), []
        for blocks in stacks:
            turned = blocks
            for i in range(1, blocks.ndim):
                basis = next(bases)
                moved = turned.movedim(i, 1)
                product = (basis.mT if transposed else basis) @ _unfolded(turned, i).to(basis.dtype)
                turned = product.view(moved.shape).movedim(1, i)
            result.append(turned)
        return result


def refresh(tensors: Sequence[tuple[dict[str, Any], Sequence[Tensor]]]) -> None:
    """Turns bases by one orthogonal iteration, sorted by their eigenvalues.

    Bases of one size are factorised in one batch. A moment that is not finite, or a factorisation
    that fails, leaves a basis as it is.

    Args:
        tensors: Each a parameter's state, with its stacks in the present bases, whose entries are
            sorted along, in place.
    """
    alike: dict[tuple[Any, ...], list[_Place]] = {}
    for state, stacks in tensors:
        axes = ((stack, i) for stack in stacks for i in range(1, stack.ndim))
        for number, (stack, axis) in enumerate(axes):
            moment = state["moments"][number]
            key = (moment.shape[-1], moment.dtype, moment.device)
            alike.setdefault(key, []).append(_Place(state, number, stack, axis))
    for places in alike.values():
        moments = _joined([place.state["moments"][place.number] for place in places])
        bases = _joined([place.state["bases"][place.number] for place in places])
        turned = moments @ bases
        order = (bases * turned).sum(-2).argsort(dim=-1, descending=True)
        try:
            fresh, _ = torch.linalg.qr(_columns(turned, order))
        except RuntimeError:  # torch.linalg.LinAlgError is one
            continue
        # Nothing is read from the device to find out which are good.
        good = torch.isfinite(fresh.sum((-2, -1))).unsqueeze(-1)
        fresh = torch.where(good.unsqueeze(-1), fresh, bases)
        order = torch.where(good, order, torch.arange(order.shape[-1], device=order.device))
        sizes = [len(place.stack) for place in places]
        for place, basis, its in zip(places, fresh.split(sizes), order.split(sizes), strict=True):
            place.state["bases"][place.number] = basis
            shape = [1] * place.stack.ndim
            shape[0], shape[place.axis] = its.shape
            entries = its.view(shape).expand_as(place.stack)
            place.stack.copy_(place.stack.gather(place.axis, entries))


class _Place(NamedTuple):
    """Where a basis is kept: the number-th of a state, along an axis of a stack."""

    state: dict[str, Any]
    number: int
    stack: Tensor
    axis: int


def _joined(stacks: Sequence[Tensor]) -> Tensor:
    return stacks[0] if len(stacks) == 1 else torch.cat(list(stacks))


def _unfolded(blocks: Tensor, i: int) -> Tensor:
    """[k, …, d_i, …] as [k, d_i, rest]."""
    moved = blocks.movedim(i, 1)
    return moved.reshape(*moved.shape[:2], -1)


def _columns(matrices: Tensor, order: Tensor) -> Tensor:
    return matrices.gather(-1, order.unsqueeze(-2).expand_as(matrices))
