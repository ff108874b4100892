"""K-FAC's saved state: what it holds beside torch's, and whether a saved one fits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npg.curvature.kronecker import Block
from npg.errors import ConfigurationError
from npg.linalg.symmetric import pack, packed_shape, unpack


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
