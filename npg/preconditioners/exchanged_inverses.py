"""Inverses that the ranks of torch.distributed share out: agreed on, sent, saved and restored."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from npg.curvature.kronecker import Block
from npg.errors import NumericalError
from npg.linalg.symmetric import pack, packed_shape, unpack
from npg.preconditioners.assignment import Assignment, Shares, inversion_cost

# A factor that cannot be inverted leaves its last inverse in use, but not for ever.
TOLERATED_FAILURES = 3
# How inverting a block went: where there is an old inverse, and where there never was one.
INVERTED, FAILED, NEVER = 1, 2, 3
# What a block's inverses are kept in: their moments' dtype, or the narrower one that was asked for.
WHOLE, NARROW = 1, 2


class ExchangedInverses:
    """An inverse, or a basis, per block; each is made by one rank, and the others come by it.

    Args:
        blocks: Whose moments to invert.
        distributed: Whether the moments are those of all ranks of ``torch.distributed``.
        assignment: Who keeps the inverses that the ranks share out, see
            :class:`npg.preconditioners.assignment.Shares`.
        dtype: What layers' inverses are kept in. Default: their moments' dtype.

    Attributes:
        inverses: Per block a matrix for each of its moments; nothing before the first, and on the
            ranks that do not keep it.
        failures: Per block, how often in a row it could not be inverted.
        damping: λ of the inverses in use.
        climbed: Factorisations that needed more than their own precision.
        kept: Times that an old inverse stayed in use.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        distributed: bool = False,
        assignment: Assignment = "communication-optimal",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.blocks = list(blocks)
        costs = [inversion_cost(block.shapes()) for block in self.blocks]
        self.shares = Shares(costs, assignment, distributed=distributed)
        self.distributed = distributed
        self.dtype = dtype
        self.inverses: list[list[Tensor]] = [[] for _ in self.blocks]
        self.failures = [0] * len(self.blocks)
        self.damping = 0.0
        self.climbed = 0
        self.kept = 0

    def _settled(
        self,
        asked: Sequence[int],
        found: Mapping[int, list[Tensor]],
        climbed: int,
        damping: float,
        *,
        symmetric: bool = True,
    ) -> dict[int, list[Tensor]]:
        """Agrees with the other ranks on what was inverted.

        Args:
            asked: Blocks that were to be inverted, the same on every rank.
            found: What this rank made of its share; fewer matrices than the block has mean that
                one could not be inverted.
            climbed: What :attr:`climbed` was before.
            damping: λ.
            symmetric: Whether half of a square matrix tells all of it.

        Returns:
            New inverses of the blocks that have one; on the ranks that do not keep it, none.
        """
        outcomes = [self._outcome(i, found) if self.shares.speaks(i) else 0 for i in asked]
        *outcomes, rose = self.shares.summed([*outcomes, self.climbed - climbed])
        self.climbed = climbed + rose
        for i, outcome in zip(asked, outcomes, strict=True):
            self.failures[i] = 0 if outcome == INVERTED else self.failures[i] + 1
            if outcome != INVERTED:
                self._keep(i, damping, first=outcome == NEVER)
        good = [i for i, outcome in zip(asked, outcomes, strict=True) if outcome == INVERTED]
        if self.shares.size == 1:
            return {i: found[i] for i in good}
        if self.shares.memory_optimal:
            return {i: found.get(i, []) for i in good}
        return self._sent(good, found, symmetric=symmetric)

    def _outcome(self, i: int, found: Mapping[int, list[Tensor]]) -> int:
        if len(found[i]) == len(self.blocks[i].moments):
            return INVERTED
        return FAILED if self.inverses[i] else NEVER

    def _sent(
        self, good: Sequence[int], found: Mapping[int, list[Tensor]], *, symmetric: bool
    ) -> dict[int, list[Tensor]]:
        """Lets every rank have every inverse."""
        result: dict[int, list[Tensor]] = {}
        messages: dict[int, list[Tensor]] = {}
        for i in good:
            if self.shares.owners[i] is None:
                result[i] = found[i]
            elif self.shares.mine(i):
                # Rows in order, as they arrive: the order decides which kernel multiplies.
                messages[i] = [pack(m) if symmetric else m.contiguous() for m in found[i]]
            else:
                messages[i] = [
                    m.new_empty(packed_shape(m.shape) if symmetric else m.shape)
                    for m in self.blocks[i].moments
                ]
        self.shares.fill(messages)
        for i, sent in messages.items():
            moments = self.blocks[i].moments
            result[i] = [
                unpack(m, like.shape) if symmetric else m
                for m, like in zip(sent, moments, strict=True)
            ]
        return result

    def _keep(self, i: int, damping: float, *, first: bool) -> None:
        """Goes on with an old inverse, where there is one."""
        self.kept += 1
        if self.failures[i] >= TOLERATED_FAILURES or first:
            shapes = ", ".join(str(tuple(p.shape)) for p in self.blocks[i].parameters)
            raise NumericalError(
                f"the curvature of the layer with parameters of shape {shapes} could not be "
                f"inverted {self.failures[i]} times in a row at damping {damping:g}: raise "
                "damping=, or look for inputs that are not finite or far too large"
            )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must go on with: tensors, numbers, lists and dictionaries of them.

        Returns:
            The same on every rank; where each keeps its share, all must ask together.
        """
        state = self.own_state()
        if self.shares.memory_optimal and self.shares.size > 1:
            state["inverses"] = self._gathered()
        return state

    def _gathered(self) -> list[list[Tensor]]:
        """The inverses of all ranks."""
        known = [self._kept_as(i) if self.shares.speaks(i) else 0 for i in range(len(self.blocks))]
        kinds = self.shares.summed(known)
        good = [i for i, kind in enumerate(kinds) if kind]
        # Nobody else knows which ones are narrow: they travel in the moments' dtype.
        found = {
            i: [m.to(like.dtype) for m, like in zip(own, self.blocks[i].moments, strict=False)]
            for i, own in enumerate(self.inverses)
        }
        sent = self._sent(good, found, symmetric=True)
        return [
            [m.to(self.dtype) if kinds[i] == NARROW else m for m in sent.get(i, [])]
            for i in range(len(self.blocks))
        ]

    def _kept_as(self, i: int) -> int:
        """0 where a block has no inverse."""
        own = self.inverses[i]
        if not own:
            return 0
        return NARROW if own[0].dtype == self.dtype != self.blocks[i].moments[0].dtype else WHOLE

    def own_state(self) -> dict[str, Any]:
        """The same of what this rank keeps, for itself alone."""
        return {
            "inverses": [list(inverse) for inverse in self.inverses],
            "failures": list(self.failures),
            "damping": self.damping,
            "climbed": self.climbed,
            "kept": self.kept,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` or :meth:`own_state` gave, on each block's device."""
        self.inverses = [
            [on_device_of(block, inverse) for inverse in inverses] if self.shares.kept(i) else []
            for i, (block, inverses) in enumerate(zip(self.blocks, state["inverses"], strict=True))
        ]
        self.failures = list(state["failures"])
        self.damping, self.climbed, self.kept = (
            state[name] for name in ("damping", "climbed", "kept")
        )


def on_device_of(block: Block, tensor: Tensor) -> Tensor:
    """A copy of a tensor where the block's parameters are."""
    return tensor.to(block.parameters[0].device, copy=True)
