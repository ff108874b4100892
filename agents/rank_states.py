"""What each rank of ``torch.distributed`` has for itself, in the checkpoint that rank 0 writes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed

from agents.training_state import generators
from npg import ranks
from npg.errors import CheckpointError

if TYPE_CHECKING:
    from agents.on_policy import OnPolicy


def of_all_ranks(model: "OnPolicy", environments: dict[str, Any]) -> dict[str, Any]:
    """Gathers the ranks' states; all of them have to call it.

    Args:
        model: The agent.
        environments: State of this rank's environments.

    Returns:
        What rank 0 is to save; of one process, its environments' state.
    """
    if ranks.count() == 1:
        return environments
    own = {
        "environments": environments,
        "generators": generators(),
        "labels": {name: each.get_state() for name, each in _label_generators(model).items()},
    }
    everyone: list[Any] | None = [None] * ranks.count() if ranks.index() == 0 else None
    torch.distributed.gather_object(own, everyone)
    return {"ranks": everyone}


def of_this_rank(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Finds this rank's part of what :func:`of_all_ranks` returned.

    Args:
        saved: From a checkpoint.

    Returns:
        The part; where there is none, why its environments' state is not known.

    Raises:
        CheckpointError: If it is nothing of the kind.
    """
    everyone = saved.get("ranks", [])
    if not isinstance(everyone, list) or not all(isinstance(each, dict) for each in everyone):
        raise CheckpointError("the ranks' states in the checkpoint are none")
    if len(everyone) == ranks.count() > 1:
        part: dict[str, Any] = everyone[ranks.index()]
        return part
    if not everyone and (ranks.count() == 1 or "state" not in saved):
        return {"environments": saved}
    reason = f"the checkpoint is of {_number(max(1, len(everyone)))}, and this is a run of "
    return {"environments": {"reason": reason + _number(ranks.count())}}


def restore_generators(model: "OnPolicy", part: Mapping[str, Any]) -> None:
    """Sets this rank's generators; those of ranks that were not there begin anew, each otherwise.

    Args:
        model: The agent that was loaded.
        part: What :func:`of_this_rank` returned.
    """
    state = model.training_optim_state
    state.restore_generators(part.get("generators"))
    labels = part.get("labels")
    for name, generator in _label_generators(model).items():
        if labels is not None:
            generator.set_state(labels[name])
    if labels is None and ranks.index() > 0:
        seed = int(torch.randint(2**31, ())) + ranks.index()
        model.set_random_seed(seed)
        for generator in _label_generators(model).values():
            generator.manual_seed(seed)


def _label_generators(model: "OnPolicy") -> dict[str, torch.Generator]:
    """Those from which optimizers draw labels."""
    found = {name: getattr(o, "generator", None) for name, o in model._optimizers().items()}
    return {name: generator for name, generator in found.items() if generator is not None}


def _number(count: int) -> str:
    return f"{count} ranks" if count > 1 else "one process"
