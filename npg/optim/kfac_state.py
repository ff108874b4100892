"""K-FAC's state: what it counts, what it saves beside torch's, and whether a saved one fits."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npg.curvature.kronecker import Block, KroneckerFisher
from npg.errors import ConfigurationError
from npg.linalg.symmetric import pack, packed_shape, unpack
from npg.optim.base import FunctionOptimizer
from npg.preconditioners import KroneckerInverse
from npg.steps import LevenbergMarquardt


class KFACState(FunctionOptimizer):
    """The part of :class:`npg.optim.KFAC` that counts steps, and saves and restores the curvature.

    Attributes:
        fisher: Statistics of the curvature; it and the others are set by the subclass.
        preconditioner: Their inverse.
        generator: Draws labels.
        schedule: Adapts λ.
        burn_in: First steps that gather statistics only.
        statistics_interval: Steps from one batch of statistics to the next.
    """

    fisher: KroneckerFisher
    preconditioner: KroneckerInverse
    generator: torch.Generator
    schedule: LevenbergMarquardt
    burn_in: int
    statistics_interval: int
    _skipped: Tensor | int  # on the device: reading it would wait for the step

    def leave_out(self, finite: Tensor) -> None:
        """Counts a step as skipped where ``finite`` is 0, on the device."""
        self._skipped = self._skipped + (finite == 0)

    def count(self) -> None:
        """Counts the step, and listens on those whose statistics are wanted."""
        self.extra["steps"] += 1
        self._listen_if_due()

    def _listen_if_due(self) -> None:
        steps = int(self.extra["steps"])
        self.fisher.capture.active = (
            steps < self.burn_in
            or steps % self.statistics_interval == 0
            or steps < self.extra["listen_until"]
            or not any(block.updates for block in self.fisher.blocks)  # none was finite yet
        )

    @property
    def skipped(self) -> int:
        """Steps that were not taken because a gradient was not finite."""
        return int(self.extra["skipped"]) + int(self._skipped)

    def state_dict(self) -> dict[str, Any]:
        """torch's state, and under ``"kfac"`` what must not be cast: factors, inverses, labels.

        Returns:
            Tensors, numbers, lists and dictionaries only, as ``weights_only=True`` asks.
        """
        self.extra["skipped"] = self.skipped
        self._skipped = 0
        self.extra["damping"] = self.schedule.damping
        return {**super().state_dict(), "kfac": self._own_state()}

    def _own_state(self) -> dict[str, Any]:
        return {
            "fisher": packed_state(self.fisher.state()),
            "preconditioner": self.preconditioner.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave, for a model of the same layers.

        Args:
            state_dict: Of this class, with the same ``inverse`` and ``eigenbasis``.

        Raises:
            ConfigurationError: If it does not fit; then nothing of it was loaded.
        """
        known = set(self.preconditioner.own_state())
        check_state(state_dict, known, self.fisher.blocks, self._in_order())
        rest = copy.deepcopy(state_dict)  # what is updated in place must not be the caller's
        own = rest.pop("kfac")
        super().load_state_dict(rest)
        self._skipped = 0
        self.fisher.load(unpacked_state(own["fisher"], self.fisher.blocks))
        self.preconditioner.load_state_dict(own["preconditioner"])
        self.generator.set_state(own["generator"].cpu())
        self.schedule.damping = self.extra["damping"]
        self.fisher.clear()
        self._listen_if_due()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a copy, which listens when this one would have."""
        super().__setstate__(state)
        self._listen_if_due()

    def _in_order(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


def packed_state(fisher: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curvature's state with the lower triangles of its moments, which are all of them.

    But for processors whose matrix products XᵀX are symmetric only up to rounding: what is not
    symmetric bit for bit is kept whole, so that training goes on bit for bit.

    Args:
        fisher: Of :meth:`npg.curvature.kronecker.KroneckerFisher.state`.

    Returns:
        A copy.
    """
    return [{**entry, "moments": [_saved(m) for m in entry["moments"]]} for entry in fisher]


def unpacked_state(
    fisher: Sequence[dict[str, Any]], blocks: Sequence[Block]
) -> list[dict[str, Any]]:
    """The inverse of :func:`packed_state`.

    Args:
        fisher: What it made.
        blocks: Of the curvature.

    Returns:
        A copy.
    """
    return [
        {
            **entry,
            "moments": [
                m.clone() if tuple(m.shape) == shape else unpack(m, shape)
                for m, shape in zip(entry["moments"], block.shapes(), strict=False)
            ],
        }
        for entry, block in zip(fisher, blocks, strict=True)
    ]


def check_state(
    state: dict[str, Any],
    known: set[str],
    blocks: Sequence[Block],
    parameters: Sequence[Tensor],
) -> None:
    """Refuses a saved state of another optimizer or model, before anything of it is loaded.

    Args:
        state: A saved ``state_dict``.
        known: Names in the state of this optimizer's preconditioner.
        blocks: Blocks of this optimizer's curvature.
        parameters: All parameters in the groups' order.

    Raises:
        ConfigurationError: If the state is not K-FAC's, is that of other settings, or its tensors
            have other shapes.
    """
    saved = state.get("kfac")
    if saved is None:
        raise ConfigurationError("the state is not K-FAC's: it has no curvature")
    if set(saved["preconditioner"]) != known:
        raise ConfigurationError(
            "the state is of another inverse: inverse= and eigenbasis= must be as they were when "
            "it was saved"
        )
    if len(saved["fisher"]) != len(blocks):
        raise ConfigurationError(
            f"the state is of {len(saved['fisher'])} blocks, this model has {len(blocks)}"
        )
    inverses = saved["preconditioner"]["inverses"]
    for i, (block, entry, inverse) in enumerate(
        zip(blocks, saved["fisher"], inverses, strict=True)
    ):
        for matrices, packs in ((entry["moments"], True), (inverse, False)):
            found = [tuple(matrix.shape) for matrix in matrices]
            expected = block.shapes()
            if found and not _alike(found, expected, packs):
                raise ConfigurationError(
                    f"the state is of another model: block {i} of it has matrices of shape "
                    f"{found}, here they are {expected}"
                )
    for i, entry in state["state"].items():
        velocity = entry.get("velocity")
        if velocity is not None and velocity.shape != parameters[i].shape:
            raise ConfigurationError(
                f"the state is of another model: parameter {i} of it has shape "
                f"{tuple(velocity.shape)}, here it is {tuple(parameters[i].shape)}"
            )


def _saved(moment: Tensor) -> Tensor:
    packed = pack(moment)
    if moment.is_meta or torch.equal(unpack(packed, moment.shape), moment):
        return packed
    return moment.clone()


def _alike(
    found: Sequence[tuple[int, ...]], expected: Sequence[tuple[int, ...]], packs: bool
) -> bool:
    """Whether shapes are as expected, or those of packed matrices if there may be some."""
    return len(found) == len(expected) and all(
        f == e or (packs and f == packed_shape(e)) for f, e in zip(found, expected, strict=True)
    )
