"""Reading a zip file of Stable-Baselines3 or sb3-contrib, whose settings are pickled, with care.

A pickle is a program. This one may make the data that such settings consist of (spaces, arrays,
schedules), and name the classes among them; what else it asks for is refused by its name, unless
the user trusts the file.
"""

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, ClassVar

import cloudpickle
import torch
from gymnasium import spaces
from stable_baselines3.common import utils

from npg.checkpoints import named_class, remedy
from npg.errors import CheckpointError

# Made anew from the learning rate; older versions pickled it with its code.
MADE_ANEW = {"lr_schedule"}
_SERIALIZED = ":serialized:"

# What a pickle may call. Each of them makes data, and does nothing else with its arguments.
_NUMPY = ("numpy.core", "numpy._core")  # the one before NumPy 2
CALLABLE = {
    "builtins.set",
    "builtins.frozenset",
    "builtins.slice",
    "builtins.complex",
    "builtins.bytearray",
    "collections.deque",
    "collections.OrderedDict",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"{package}.multiarray.{name}" for package in _NUMPY for name in ("_reconstruct", "scalar")),
    *(f"{package}.numeric._frombuffer" for package in _NUMPY),
    *(
        f"numpy.{name}"
        for name in ("bool_", "float32", "float64", "int8", "int32", "int64", "uint8")
    ),
    "numpy.random._pickle.__generator_ctor",
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random._pickle.__randomstate_ctor",
    *(f"numpy.random._{name.lower()}.{name}" for name in ("PCG64", "MT19937", "Philox", "SFC64")),
    *(
        f"numpy.random.bit_generator.{name}"
        for name in ("SeedSequence", "__pyx_unpickle_SeedSequence")
    ),
    *(
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in (
            *(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
            *(spaces.Dict, spaces.Tuple),
            *(utils.FloatSchedule, utils.ConstantSchedule, utils.LinearSchedule),
        )
    ),
}


@dataclass(frozen=True)
class _Named:
    """A class that a pickle names and cannot call."""

    name: str


class _Careful(pickle._Unpickler):  # type: ignore[name-defined]
    """Python's own unpickler in Python, whose instructions can be changed."""

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def __init__(self, file: IO[bytes], place: str) -> None:
        super().__init__(file)
        self.place = place
        self._found: list[object] = []

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in CALLABLE:
            found = super().find_class(module, name)
        else:
            try:
                named_class(f"{module}:{name}", trust=False)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{self.place} is pickled and asks for {full}, which no such file needs; "
                    f"{remedy(self.place)}"
                ) from error
            found = _Named(f"{module}:{name}")
        self._found.append(found)
        return found

    def load_build(self) -> None:
        """Sets what an object holds, but nothing on the classes and functions themselves."""
        if any(self.stack[-2] is found for found in self._found):  # type: ignore[has-type]
            raise CheckpointError(f"{self.place}: its pickle would change a class")
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = load_build

    def persistent_load(self, pid: object) -> Any:
        raise CheckpointError(f"{self.place}: its pickle refers to something outside of it")


def read_peer(
    file: IO[bytes], name: str, device: torch.device | str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a file of Stable-Baselines3's format.

    Args:
        file: Open for reading.
        name: What errors call it.
        device: Where tensors go.

    Returns:
        The attributes as they stand in the file, for :func:`peer_attributes`, and the state
        dictionaries by name.

    Raises:
        CheckpointError: If the file is damaged, or something else.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            members = {} if damaged else {m: archive.read(m) for m in archive.namelist()}
    except Exception as error:  # zipfile's own, zlib's, struct's: whatever damaged bytes lead to
        raise CheckpointError(
            f"{name} wasn't a zip-file, or is truncated or damaged ({error}): a checkpoint is the "
            "zip file that save() wrote"
        ) from error
    if damaged:
        raise CheckpointError(f"{name} is damaged: its member {damaged} fails its checksum")
    missing = {"data", "policy.pth"} - members.keys()
    if missing:
        raise CheckpointError(
            f"{name} is truncated, or no checkpoint of an agent: it lacks {sorted(missing)}"
        )
    try:
        items = dict(json.loads(members["data"]).items())
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{name}: its member data is damaged ({error})") from error
    states = {
        member.removesuffix(".pth"): _state(f"{name}: {member}", content, device)
        for member, content in members.items()
        if member.endswith(".pth") and member != "pytorch_variables.pth"
    }
    return items, states


def peer_attributes(
    items: Mapping[str, Any], name: str, trust: bool, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Makes the attributes of an agent from what stands in a file.

    Args:
        items: The first that :func:`read_peer` returned.
        name: What errors call the file.
        trust: Whether pickles may run whatever they ask for.
        given: Attributes that are not read but taken from here, as far as the file has them.

    Returns:
        The attributes.

    Raises:
        CheckpointError: If a pickle is damaged, or asks for what may not be run.
    """
    return {
        key: given[key] if key in given else _attribute(f"{name}: {key}", key, item, trust)
        for key, item in items.items()
        if key not in MADE_ANEW or key in given
    }


def _attribute(place: str, key: str, item: Any, trust: bool) -> Any:
    if not isinstance(item, dict) or _SERIALIZED not in item:
        return item
    try:
        pickled = base64.b64decode(item[_SERIALIZED])
        if trust:
            return cloudpickle.loads(pickled)
        return _resolved(_Careful(io.BytesIO(pickled), f"agent.{key}").load(), seen={})
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error
    except Exception as error:  # a pickle can raise whatever it likes
        raise CheckpointError(f"{place} cannot be read: {error!r}; {remedy(place)}") from error


def _resolved(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """Puts classes in place of their names, in containers too, each of which is visited once."""
    if isinstance(value, _Named):
        return named_class(value.name, trust=False)
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) not in seen:
        seen[id(value)] = value, value  # it holds itself, perhaps
        if isinstance(value, dict):
            for key, item in value.items():
                value[key] = _resolved(item, seen)
        elif isinstance(value, list):
            value[:] = [_resolved(item, seen) for item in value]
        elif type(value) is tuple:
            seen[id(value)] = value, tuple(_resolved(item, seen) for item in value)
    return seen[id(value)][1]


def _state(place: str, content: bytes, device: torch.device | str) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{place} is damaged: {error}") from error
