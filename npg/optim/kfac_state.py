"""K-FAC's saved state: what it holds beside torch's, and whether a saved one fits."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from npg.curvature.kronecker import Block
from npg.errors import ConfigurationError


def check_state(
    state: dict[str, Any],
    own: dict[str, Any],
    blocks: Sequence[Block],
    parameters: Sequence[Tensor],
) -> None:
    """Refuses a saved state of another optimizer or model, before anything of it is loaded.

    Args:
        state: A saved ``state_dict``.
        own: What this optimizer would save under ``"kfac"``.
        blocks: Blocks of this optimizer's curvature.
        parameters: All parameters in the groups' order.

    Raises:
        ConfigurationError: If the state is not K-FAC's, is that of other settings, or its tensors
            have other shapes.
    """
    saved = state.get("kfac")
    if saved is None:
        raise ConfigurationError("the state is not K-FAC's: it has no curvature")
    if set(saved["preconditioner"]) != set(own["preconditioner"]):
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
        for matrices in (entry["moments"], inverse):
            found = [tuple(matrix.shape) for matrix in matrices]
            if found and found != block.shapes():
                raise ConfigurationError(
                    f"the state is of another model: block {i} of it has matrices of shape "
                    f"{found}, here they are {block.shapes()}"
                )
    for i, entry in state["state"].items():
        velocity = entry.get("velocity")
        if velocity is not None and velocity.shape != parameters[i].shape:
            raise ConfigurationError(
                f"the state is of another model: parameter {i} of it has shape "
                f"{tuple(velocity.shape)}, here it is {tuple(parameters[i].shape)}"
            )
