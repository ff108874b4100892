"""The file of an agent: its attributes, and the states of its policy and optimizers."""

import io
import pathlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import torch
from stable_baselines3.common import utils
from stable_baselines3.common.buffers import BaseBuffer

from agents import described_spaces as _described_spaces  # noqa: F401 - makes them known
from agents.peer_checkpoint import peer_attributes, read_peer
from agents.remedies import remedy
from npg import checkpoints
from npg.errors import CheckpointError

Path = str | pathlib.Path | io.BufferedIOBase

AGENT, STATES, SYSTEM = "agent", "states", "system"
# Made anew from the learning rate; older versions of Stable-Baselines3 pickled it with its code.
MADE_ANEW = {"lr_schedule"}

checkpoints.accept_classes(
    ("agents", "envs", "stable_baselines3", "sb3_contrib"), (BaseBuffer, torch.nn.Module)
)


@dataclass(frozen=True)
class Saved:
    """What a file holds.

    Attributes:
        names: Of the agent's attributes.
        attributes: Reads these, but for those that it is given, which are taken as they are.
        states: State dictionaries, by the names of what they belong to.
        system: Versions of what saved it.
    """

    names: Collection[str]
    attributes: Callable[[Mapping[str, Any]], dict[str, Any]]
    states: dict[str, Any]
    system: str


def write(file: IO[bytes], attributes: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Writes the file of an agent.

    Args:
        file: Open for writing.
        attributes: Of the agent. What is neither data nor a class that can be imported is pickled,
            with a warning, and needs ``trust=True`` to be read.
        states: State dictionaries.
    """
    kept = {name: value for name, value in attributes.items() if name not in MADE_ANEW}
    system = utils.get_system_info(print_info=False)[1]
    checkpoints.write(file, {AGENT: kept, STATES: dict(states), SYSTEM: system}, remedy)


def read(path: Path, device: torch.device | str = "cpu", trust: bool = False) -> Saved:
    """Reads a file of this library, or one of Stable-Baselines3's format.

    Args:
        path: File, with or without ".zip", or open for reading: from its position to its end.
        device: Where tensors go.
        trust: Whether pickles are read, which run any code of who wrote the file.

    Returns:
        What it holds; a pickle among the attributes is an error when these are asked for.

    Raises:
        CheckpointError: If it is missing, damaged, or something else.
    """
    if not isinstance(path, str | pathlib.Path):
        return _read(path, "the file", device, trust)
    found = _found(pathlib.Path(path))
    try:
        with open(found, "rb") as file:
            return _read(file, str(found), device, trust)
    except OSError as error:
        raise CheckpointError(f"{found} cannot be read: {error}") from error


def _found(path: pathlib.Path) -> pathlib.Path:
    if not path.is_file() and path.with_name(path.name + ".zip").exists():
        path = path.with_name(path.name + ".zip")
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    return path


def _read(file: IO[bytes], name: str, device: torch.device | str, trust: bool) -> Saved:
    device = utils.get_device(device)
    stored = checkpoints.content_of(file, name)
    if not checkpoints.is_sealed(stored):
        items, states, system = read_peer(stored, name, device)
        names = items.keys() - MADE_ANEW
        items = {key: item for key, item in items.items() if key in names}
        return Saved(items, partial(peer_attributes, items, name, trust), states, system)
    content = checkpoints.opened(stored, name, device, trust, remedy)
    if not {AGENT, STATES} <= content.keys():
        raise CheckpointError(f"{name} is no checkpoint of an agent: it has {sorted(content)}")
    states = content[STATES]
    if not isinstance(states, dict):
        raise CheckpointError(f"{name} is no checkpoint of an agent: its states are no dictionary")
    attributes = partial(content.without, AGENT)
    return Saved(content.names(AGENT), attributes, states, str(content.get(SYSTEM, "")))
