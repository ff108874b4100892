"""The slowly turning eigenbasis of Shampoo's moments, in which SOAP runs Adam."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from npg.errors import NumericalError
from npg.linalg.inverses import positive_eigenbasis
from npg.preconditioners.blocks import Partition
from npg.preconditioners.diagonal import MeanSquares
from npg.preconditioners.moments import BlockMoments, along_each, gather


class AdamInEigenbasis(BlockMoments):
    """Q (Qᵀ g / (√v̂ + ε)), Q the bases of E[G_(i) G_(i)ᵀ], v the mean of (Qᵀ g)².

    The first bases are eigenvectors; later ones are those after a step of orthogonal iteration,
    which follows a matrix that changes slowly at a fraction of the cost. The mean gradient is kept
    in the bases as well: to turn it anew in every step would be a third of all products.

    Args:
        states: A dictionary per tensor.
        partitions: The blocks of every tensor.
        turns: Whether a tensor has bases; without any it is Adam's.
        decay: β of the moments' running mean.
        betas: Of the mean of Qᵀ g, and of that of its squares.
        epsilon: ε.
        steps: Gradients that entered v, with the one that will: its bias is 1 − βᵗ.

    Reference:
        Vyas et al., "SOAP: improving and stabilizing Shampoo using Adam", 2024.
    """

    names = ("moments", "moment_steps", "bases", "mean", "squares")

    def __init__(
        self,
        states: Sequence[dict[str, Any]],
        partitions: Sequence[Partition],
        turns: Sequence[bool],
        *,
        decay: float,
        betas: tuple[float, float],
        epsilon: float,
        steps: int,
    ) -> None:
        super().__init__(states, partitions, decay)
        self.turns = turns
        self.betas = betas
        self.epsilon = epsilon
        self.steps = steps

    def gather(self, gradients: list[Tensor]) -> None:
        """Lets a gradient per tensor enter the moments, and nothing else."""
        places = [i for i, turns in enumerate(self.turns) if turns]
        gather(
            [self.states[i] for i in places],
            [self.partitions[i] for i in places],
            self.decay,
            [gradients[i] for i in places],
        )

    def update(self, statistics: list[Tensor]) -> None:
        """Lets a gradient per tensor enter the means, in the present bases, and the moments."""
        turned = self._into(statistics)
        for state, stacks in zip(self.states, turned, strict=True):
            if "mean" not in state:
                state["mean"] = [torch.zeros_like(stack) for stack in stacks]
                state["squares"] = [torch.zeros_like(stack) for stack in stacks]
        torch._foreach_lerp_(self._all("mean"), _flat(turned), 1 - self.betas[0])
        self._squares().update(_flat(turned))
        self.gather(statistics)

    def apply(self, gradients: list[Tensor]) -> list[Tensor]:
        """Turns gradients into the bases, divides by √v̂ + ε, and turns them back."""
        return self._back(self._squares().apply(_flat(self._into(gradients))), gradients)

    def direction(self, like: Sequence[Tensor]) -> list[Tensor]:
        """The same of the mean gradient, which still has the bias of its zero start.

        Args:
            like: Tensors whose dtypes to take.

        Returns:
            A tensor each.
        """
        return self._back(self._squares().apply(self._all("mean")), like)

    def refresh(self) -> None:
        """Finds the bases, or turns them by one orthogonal iteration, sorted by their eigenvalues.

        Bases of one size are factorised in one batch. A moment that is not finite, or
        a factorisation that fails, leaves a basis as it is.

        Raises:
            NumericalError: If a first moment has no eigenvectors.
        """
        turning = [state for state, turns in zip(self.states, self.turns, strict=True) if turns]
        old = [state for state in turning if "bases" in state]
        for state in turning:
            if "bases" not in state:
                state["bases"] = [_eigenvectors(moment) for moment in state["moments"]]
        means = [along_each(state["bases"], state["mean"]) for state in old]
        _iterate(old)
        for state, mean in zip(old, means, strict=True):
            state["mean"] = along_each(state["bases"], mean, transposed=True)

    def _all(self, name: str) -> list[Tensor]:
        """The stacks of every tensor, one after the other."""
        return _flat([state[name] for state in self.states])

    def _squares(self) -> MeanSquares:
        second = self.betas[1]
        return MeanSquares(
            [{"square": stack} for stack in self._all("squares")],
            "square",
            keep=second,
            weight=1 - second,
            correction=1 - second**self.steps,
            epsilon=self.epsilon,
        )

    def _into(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """The tensors' stacks in the bases."""
        cut = [p.cut(t) for p, t in zip(self.partitions, tensors, strict=True)]
        return [
            along_each(state["bases"], stacks, transposed=True) if turns else stacks
            for state, stacks, turns in zip(self.states, cut, self.turns, strict=True)
        ]

    def _back(self, stacks: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of stacks in the bases."""
        given, result = iter(stacks), []
        for i, (state, partition) in enumerate(zip(self.states, self.partitions, strict=True)):
            its = [next(given) for _ in state["squares"]]
            its = along_each(state["bases"], its) if self.turns[i] else its
            result.append(partition.join(its).to(like[i].dtype))
        return result


def _eigenvectors(moments: Tensor) -> Tensor:
    """Of [k, d, d], those of the largest eigenvalues first."""
    found, _ = positive_eigenbasis(moments)
    if found is None:
        raise NumericalError(
            f"a moment of {list(moments.shape)} has no eigenvectors: look for gradients "
            "that are not finite"
        )
    return found[1].flip(-1)


class _Place(NamedTuple):
    """Where a basis is kept: the number-th of a state, along an axis of a stack of squares."""

    state: dict[str, Any]
    number: int
    stack: Tensor
    axis: int


def _iterate(states: Sequence[dict[str, Any]]) -> None:
    """Turns bases towards their moments' eigenvectors; squares are sorted along with them."""
    alike: dict[tuple[Any, ...], list[_Place]] = {}
    for state in states:
        axes = ((stack, i) for stack in state["squares"] for i in range(1, stack.ndim))
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


def _joined(stacks: Sequence[Tensor]) -> Tensor:
    return stacks[0] if len(stacks) == 1 else torch.cat(list(stacks))


def _flat(stacks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [stack for its in stacks for stack in its]


def _columns(matrices: Tensor, order: Tensor) -> Tensor:
    return matrices.gather(-1, order.unsqueeze(-2).expand_as(matrices))
