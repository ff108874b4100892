"""The file of an agent: its attributes, and the states of its policy and optimizers."""

import io
import pathlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import torch
from gymnasium import spaces
from stable_baselines3.common import utils
from stable_baselines3.common.buffers import BaseBuffer

from agents.peer_checkpoint import peer_attributes, read_peer
from npg import checkpoints
from npg.errors import CheckpointError

Path = str | pathlib.Path | io.BufferedIOBase

AGENT, STATES = "agent", "states"

checkpoints.accept_classes(
    ("agents", "envs", "stable_baselines3", "sb3_contrib"), (BaseBuffer, torch.nn.Module)
)
checkpoints.register(
    "$box",
    spaces.Box,
    lambda space: [space.low, space.high, space.dtype.name],
    lambda parts: spaces.Box(parts[0], parts[1], dtype=parts[2]),
)
checkpoints.register(
    "$discrete",
    spaces.Discrete,
    lambda space: [int(space.n), int(space.start)],
    lambda parts: spaces.Discrete(parts[0], start=parts[1]),
)
checkpoints.register(
    "$multidiscrete",
    spaces.MultiDiscrete,
    lambda space: [space.nvec, space.start],
    lambda parts: spaces.MultiDiscrete(parts[0], start=parts[1]),
)
checkpoints.register(
    "$multibinary",
    spaces.MultiBinary,
    lambda space: space.n if isinstance(space.n, int) else [int(n) for n in space.n],
    spaces.MultiBinary,
)
checkpoints.register("$dict", spaces.Dict, lambda space: dict(space.spaces), spaces.Dict)
checkpoints.register("$product", spaces.Tuple, lambda space: list(space.spaces), spaces.Tuple)
checkpoints.register(
    "$schedule", utils.FloatSchedule, lambda made: made.value_schedule, utils.FloatSchedule
)
checkpoints.register(
    "$constant", utils.ConstantSchedule, lambda made: made.val, utils.ConstantSchedule
)
checkpoints.register(
    "$linear",
    utils.LinearSchedule,
    lambda made: [made.start, made.end, made.end_fraction],
    lambda parts: utils.LinearSchedule(*parts),
)


@dataclass(frozen=True)
class Saved:
    """What a file holds.

    Attributes:
        names: Of the agent's attributes.
        attributes: Reads these, but for those that it is given, which are taken as they are.
        states: State dictionaries, by the names of what they belong to.
    """

    names: Collection[str]
    attributes: Callable[[Mapping[str, Any]], dict[str, Any]]
    states: dict[str, Any]


def write(file: IO[bytes], attributes: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Writes the file of an agent.

    Args:
        file: Open for writing.
        attributes: Of the agent. What is neither data nor a class that can be imported is pickled,
            and needs ``trust=True`` to be read.
        states: State dictionaries.
    """
    checkpoints.write(file, {AGENT: dict(attributes), STATES: dict(states)})


def read(path: Path, device: torch.device | str = "cpu", trust: bool = False) -> Saved:
    """Reads a file of this library, or one of Stable-Baselines3's format.

    Args:
        path: File, with or without ".zip", or open for reading.
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
    if not checkpoints.is_sealed(file):
        items, states = read_peer(file, name, device)
        return Saved(items, partial(peer_attributes, items, name, trust), states)
    content = checkpoints.read(file, device, trust)
    if not {AGENT, STATES} <= content.keys():
        raise CheckpointError(f"{name} is no checkpoint of an agent: it has {sorted(content)}")
    return Saved(content.names(AGENT), partial(content.without, AGENT), content[STATES])
