"""Nested values as JSON and tensors, which are read back without running anything.

Numbers, strings, lists and dictionaries are JSON's own. Everything else is an object whose first
key begins with "$": ``{"$tensor": "policy.weight"}`` names a tensor that is kept beside the JSON,
``{"$tuple": [...]}`` is a tuple, and so on; :func:`register` adds more of them. What none of them
describes is pickled, and is read back only from a file that the user trusts.
"""

import base64
import collections
import enum
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import Tensor

from npg.checkpoints import classes, tensors
from npg.errors import CheckpointError

Json = Any
# What a user can do about a value, given its place, that is read only with trust.
Remedy = Callable[[str], str]
# Values within values; a file that nests deeper was made to exhaust whoever reads it.
MAX_DEPTH = 100

# By type: the tag, and what gives the value in terms of types that are described already. By tag:
# what makes the value again.
_DESCRIBERS: dict[type, tuple[str, Callable[[Any], Any]]] = {}
RESTORERS: dict[str, Callable[[Any], Any]] = {}


def register(
    tag: str, kind: type, describe: Callable[[Any], Any], restore: Callable[[Any], Any]
) -> None:
    """Adds a type of values.

    Args:
        tag: Its name in files, with the "$".
        kind: The type; subclasses are not meant.
        describe: Gives a value that is made of types known already.
        restore: Makes the value from that. It gets whatever a file may hold: it must only build.
    """
    _DESCRIBERS[kind] = (tag, describe)
    RESTORERS[tag] = restore


def trust_remedy(place: str) -> str:
    """What a user can do about a value that is read only with trust."""
    return f"trust=True reads {place}, which can run any code of who wrote the file"


@dataclass
class Description:
    """Describes values, and gathers what is not JSON.

    Attributes:
        tensors: Tensors and arrays in them, by names that begin with their places.
        untrusted: Places of what is read back only with trust, and what is there.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    untrusted: dict[str, str] = field(default_factory=dict)

    def of(self, value: Any, place: str, depth: int = 0) -> Json:  # noqa: ANN401
        """Describes a value.

        Args:
            value: Anything.
            place: Name of its place; of what is in it, this, a dot and its key.
            depth: Of values that it is in.

        Returns:
            What JSON can hold.

        Raises:
            CheckpointError: If it contains itself, or nests deeper than is read.
        """
        if depth > MAX_DEPTH:
            raise CheckpointError(
                f"{place[:80]}… nests more than {MAX_DEPTH} values deep, or contains itself"
            )
        kind = type(value)
        if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
            return value
        if kind is list:
            return [self.of(item, f"{place}.{i}", depth + 1) for i, item in enumerate(value)]
        if kind is dict:
            return self._mapping(value, place, depth)
        if tensors.is_kept(value):
            describe = tensors.describe_array if kind is np.ndarray else tensors.describe_tensor
            return describe(value, self.tensors, place)
        if kind is collections.OrderedDict:
            return self._ordered(value, place, depth)
        tag, inner = _described(value)
        if tag == "$class" and not classes.is_accepted(inner):
            self.untrusted[place] = f"the class {inner}"
        if tag:
            return {tag: self.of(inner, place, depth + 1)}
        name = f"{kind.__module__}.{kind.__qualname__}"
        self.untrusted[place] = f"a pickled {name}"
        pickled = base64.b64encode(cloudpickle.dumps(value)).decode()
        return {"$pickle": pickled, "type": name}

    def _mapping(self, value: Mapping[Any, Any], place: str, depth: int) -> dict[str, Json]:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {k: self.of(item, f"{place}.{k}", depth + 1) for k, item in value.items()}
        items = [
            [self.of(key, place, depth + 1), self.of(item, f"{place}.{key}", depth + 1)]
            for key, item in value.items()
        ]
        return {"$items": items}

    def _ordered(
        self, value: collections.OrderedDict[Any, Any], place: str, depth: int
    ) -> dict[str, Json]:
        """With what ``Module.state_dict`` notes for modules of later versions."""
        described = {"$ordered": self.of(dict(value), place, depth + 1)}
        metadata = vars(value).get("_metadata")
        if metadata is not None:
            described["metadata"] = self.of(metadata, f"{place}._metadata", depth + 1)
        return described


@dataclass(frozen=True)
class Reader:
    """Makes the values that a :class:`Description` is of.

    Attributes:
        tensors: Those that it gathered.
        device: Where they go.
        trust: Whether pickles may be read, and classes of any package imported.
        remedy: What errors tell to do without.
    """

    tensors: Mapping[str, Tensor]
    device: torch.device | str = "cpu"
    trust: bool = False
    remedy: Remedy = trust_remedy

    def value(self, described: Json, place: str, depth: int = 0) -> Any:  # noqa: ANN401
        """Makes a value; each time, one that shares nothing with another.

        Args:
            described: What :meth:`Description.of` returned.
            place: Where the value comes from, for errors.
            depth: Of values that it is in.

        Returns:
            The value.

        Raises:
            CheckpointError: If the description is of nothing known, or needs trust.
        """
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{place[:80]}… nests more than {MAX_DEPTH} values deep")
        if isinstance(described, list):
            return [self.value(d, f"{place}.{i}", depth + 1) for i, d in enumerate(described)]
        if not isinstance(described, dict):
            return described
        tag = next(iter(described), "")
        if not tag.startswith("$"):
            return {k: self.value(d, f"{place}.{k}", depth + 1) for k, d in described.items()}
        try:
            return self._tagged(tag, described, place, depth)
        except CheckpointError:
            raise
        except Exception as error:  # whatever a description that nobody wrote leads to
            raise CheckpointError(f"{place} is no {tag[1:]}: {error!r}") from error

    def _tagged(self, tag: str, described: dict[str, Json], place: str, depth: int) -> Any:  # noqa: ANN401
        content = described[tag]
        if tag in ("$tensor", "$array"):
            return tensors.made(described, self.tensors, self.device)
        if tag == "$pickle":
            return self._unpickled(content, described["type"], place)
        inner = self.value(content, place, depth + 1)
        if tag == "$ordered":
            made = collections.OrderedDict(inner)
            if "metadata" in described:
                vars(made)["_metadata"] = self.value(described["metadata"], place, depth + 1)
            return made
        if tag == "$class":
            return self._named(classes.named_class, inner, place)
        if tag == "$enum":
            return self._named(classes.data_class, inner[0], place).__members__[inner[1]]
        if tag == "$named":
            return tuple.__new__(self._named(classes.data_class, inner[0], place), inner[1])
        if tag not in RESTORERS:
            raise CheckpointError(f"{place}: a value of the unknown kind {tag}")
        return RESTORERS[tag](inner)

    def _named(self, find: Callable[[str, bool], type], name: str, place: str) -> Any:  # noqa: ANN401
        try:
            return find(name, self.trust)
        except CheckpointError as error:
            raise CheckpointError(f"{place}: {error}; {self.remedy(place)}") from error

    def _unpickled(self, content: str, kind: str, place: str) -> Any:  # noqa: ANN401
        if not self.trust:
            raise CheckpointError(f"{place}: a pickled {kind}; {self.remedy(place)}")
        return pickle.loads(base64.b64decode(content))


def _described(value: Any) -> tuple[str, Any]:  # noqa: ANN401
    """The tag of a value and what it consists of; no tag if only a pickle can hold it."""
    kind = type(value)
    if kind in _DESCRIBERS:
        tag, describe = _DESCRIBERS[kind]
        return tag, describe(value)
    if isinstance(value, np.generic) and tensors.is_plain(value.dtype):
        return "$number", [value.dtype, value.item()]
    if isinstance(value, np.dtype) and tensors.is_plain(value) and value.fields is None:
        return "$numpy", value.str
    if isinstance(value, type) and issubclass(value, np.generic) and value.__module__ == "numpy":
        return ("$scalar", np.dtype(value)) if tensors.is_plain(np.dtype(value)) else ("", None)
    if isinstance(value, type):
        name = classes.class_name(value)
        return ("$class", name) if name else ("", None)
    name = classes.class_name(kind)
    if name and isinstance(value, enum.Enum):
        known = kind.__members__.get(value.name) is value  # not a combination of flags
        return ("$enum", [name, value.name]) if known else ("", None)
    if name and classes.has_named_fields(kind) and not getattr(value, "__dict__", None):
        return "$named", [name, list(value)]
    return "", None
