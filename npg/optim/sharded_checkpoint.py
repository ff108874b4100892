"""Model and optimizer in torch.distributed's own checkpoints, which other numbers of ranks load."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from npg.errors import ConfigurationError
from npg.optim.shards import is_sharded


def save_sharded(directory: Path | str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Writes model and optimizer, each rank its part; all ranks call this together.

    Args:
        directory: Where to; every rank must see it.
        model: Plain, or after ``fully_shard``.
        optimizer: Of its parameters.
    """
    entries = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    save(entries, checkpoint_id=directory, no_dist=_alone())


def load_sharded(directory: Path | str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restores what :func:`save_sharded` wrote, on any number of ranks, sharded or not.

    torch reads these checkpoints by unpickling: load what you trust.

    Args:
        directory: Where it is.
        model: Of the same parameters, plain or after ``fully_shard``.
        optimizer: Of the same class, with the same groups.

    Raises:
        ConfigurationError: If the checkpoint is of an optimizer with other parameters.
    """
    reader = FileSystemReader(directory)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries = {
        "model": model.state_dict(),
        "optimizer": _places(reader.read_metadata(), parameters),
    }
    load(entries, storage_reader=reader, no_dist=_alone())
    model.load_state_dict(entries["model"])
    optimizer.load_state_dict({"state": {}, **_restored(entries["optimizer"])})


class _List(dict[str, Any]):
    """A list as torch flattens it, by its places."""


def _places(metadata: Metadata, parameters: list[Tensor]) -> dict[str, Any]:
    """What a saved optimizer state is to be read into: spread as the parameters are now."""
    root: dict[str, Any] = {}
    for name, stored in metadata.state_dict_metadata.items():
        path = metadata.planner_data[name]
        if path[0] != "optimizer":
            continue
        value: Tensor | None = None
        if isinstance(stored, TensorStorageMetadata):
            value = torch.empty(stored.size, dtype=stored.properties.dtype)
        if path[1] == "state":
            if int(path[2]) >= len(parameters):
                raise ConfigurationError(
                    f"the checkpoint has a state of parameter {path[2]}, and the optimizer has "
                    f"{len(parameters)} parameters: make both of the same model"
                )
            if value is not None:
                value = _place(value, parameters[int(path[2])])
        here = root
        for step, following in pairwise(path[1:]):
            here = here.setdefault(str(step), _List() if isinstance(following, int) else {})
        here[str(path[-1])] = value
    return root


def _place(value: Tensor, parameter: Tensor) -> Tensor:
    if is_sharded(parameter) and value.shape == parameter.shape:
        return torch.zeros_like(parameter, dtype=value.dtype)
    return value.to(parameter.device)


def _restored(entry: Any) -> Any:  # noqa: ANN401
    """With lists again; torch has made words of numbers that are keys."""
    if isinstance(entry, _List):
        return [_restored(entry[place]) for place in sorted(entry, key=int)]
    if isinstance(entry, dict):
        return {int(k) if k.isdecimal() else k: _restored(v) for k, v in entry.items()}
    return entry


def _alone() -> bool:
    return not torch.distributed.is_initialized()
