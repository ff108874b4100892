"""What every preconditioner can do."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

Statistics = TypeVar("Statistics", contravariant=True)
Gradients = TypeVar("Gradients")


class Preconditioner(ABC, Generic[Statistics, Gradients]):
    """g ↦ P⁻¹g, for a P that is estimated while a model trains.

    A step lets new statistics in (:meth:`update`: cheap, as often as there are any), now and then
    does what is expensive with them (:meth:`refresh`: an inverse, a root, a basis; nothing where
    nothing is expensive), and preconditions gradients (:meth:`apply`).
    """

    @abstractmethod
    def update(self, statistics: Statistics) -> None:
        """Lets a step's statistics enter the running estimate."""

    def refresh(self) -> None:
        """Makes of the present estimate what :meth:`apply` multiplies by."""

    @abstractmethod
    def apply(self, gradients: Gradients) -> Gradients:
        """Multiplies by P⁻¹."""

    @abstractmethod
    def state_dict(self) -> Any:  # noqa: ANN401
        """What a resumed run must go on with: tensors, numbers, lists and dictionaries of them."""

    @abstractmethod
    def load_state_dict(self, state: Any) -> None:  # noqa: ANN401
        """Restores what :meth:`state_dict` gave."""


class TensorPreconditioner(Preconditioner[list[Tensor], list[Tensor]]):
    """One for a list of tensors, which keeps what it remembers of each in a dictionary of its own.

    Args:
        states: A dictionary per tensor: an optimizer's state, which is saved with it.
    """

    # What of a state is the preconditioner's; the rest is the optimizer's.
    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, states: Sequence[dict[str, Any]]) -> None:
        self.states = states

    def state_dict(self) -> list[dict[str, Any]]:
        """What is remembered, per tensor."""
        return [{n: state[n] for n in self.names if n in state} for state in self.states]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Restores what :meth:`state_dict` gave."""
        for own, given in zip(self.states, state, strict=True):
            own.update(given)


def remembered(states: Sequence[dict[str, Any]], name: str, like: Sequence[Tensor]) -> list[Tensor]:
    """A tensor of every state, zero before it is first asked for.

    Args:
        states: A dictionary per tensor.
        name: Under which they are kept.
        like: Their shapes and dtypes.

    Returns:
        The tensors themselves.
    """
    for state, tensor in zip(states, like, strict=True):
        if name not in state:
            state[name] = torch.zeros_like(tensor, memory_format=torch.preserve_format)
    return [state[name] for state in states]
