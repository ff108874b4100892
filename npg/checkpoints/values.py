"""Nested values as JSON and tensors, which are read back without running anything.

Numbers, strings, lists and dictionaries are JSON's own. Everything else is an object whose first
key begins with "$": ``{"$tensor": "policy.weight"}`` names a tensor that is kept beside the JSON,
``{"$tuple": [...]}`` is a tuple, and so on; :func:`register` adds more of them. What none of them
describes is pickled, and is read back only from a file that the user trusts.
"""

import base64
import collections
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import Tensor

from npg.checkpoints.classes import class_name, named_class
from npg.errors import CheckpointError

Json = Any

# By type: the tag, and what gives the value in terms of types that are described already. By tag:
# what makes the value again.
_describers: dict[type, tuple[str, Callable[[Any], Any]]] = {}
_restorers: dict[str, Callable[[Any], Any]] = {}


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
    _describers[kind] = (tag, describe)
    _restorers[tag] = restore


register("$float", float, repr, float)  # those that JSON has no number for
register("$tuple", tuple, list, tuple)
register("$size", torch.Size, list, torch.Size)
register("$set", set, lambda items: sorted(items, key=repr), set)
register(
    "$deque",
    collections.deque,
    lambda items: [list(items), items.maxlen],
    lambda described: collections.deque(described[0], described[1]),
)
register("$device", torch.device, str, torch.device)
_restorers["$complex"] = torch.view_as_complex
_restorers["$items"] = dict


def encode(value: Any, tensors: dict[str, Tensor], place: str) -> Json:  # noqa: ANN401
    """Describes a value.

    Args:
        value: Anything.
        tensors: Gets the tensors and arrays in it, under the names of their places.
        place: Name of the value's own place; of what is in it, this, a dot and its key.

    Returns:
        What JSON can hold.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
        return value
    if kind is list:
        return [encode(item, tensors, f"{place}.{i}") for i, item in enumerate(value)]
    if kind in (dict, collections.OrderedDict):
        return _encode_mapping(value, tensors, place)
    if isinstance(value, Tensor) and value.layout is torch.strided:
        if value.is_complex():  # of which safetensors has not every precision
            return {"$complex": encode(torch.view_as_real(value.resolve_conj()), tensors, place)}
        return _encode_tensor(value.detach(), tensors, place)
    if kind is np.ndarray and value.dtype.kind in "biuf":
        native = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
        return {"$array": _keep(torch.from_numpy(native), tensors, place)}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {"$number": [value.dtype.name, encode(value.item(), tensors, place)]}
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    if isinstance(value, type) and (name := class_name(value)):
        return {"$class": name}
    if kind in _describers:
        tag, describe = _describers[kind]
        return {tag: encode(describe(value), tensors, place)}
    pickled = base64.b64encode(cloudpickle.dumps(value)).decode()
    return {"$pickle": pickled, "type": f"{kind.__module__}.{kind.__qualname__}"}


def decode(described: Json, tensors: Mapping[str, Tensor], place: str, trust: bool) -> Any:  # noqa: ANN401
    """Makes the value that :func:`encode` described.

    Args:
        described: What it returned.
        tensors: What it put aside.
        place: Where the value comes from, for errors.
        trust: Whether pickles may be read, and classes of any package imported.

    Returns:
        The value.

    Raises:
        CheckpointError: If the description is of nothing known, or needs trust.
    """
    if isinstance(described, list):
        return [decode(d, tensors, f"{place}.{i}", trust) for i, d in enumerate(described)]
    if not isinstance(described, dict):
        return described
    tag = next(iter(described), "")
    if not tag.startswith("$"):
        return {k: decode(d, tensors, f"{place}.{k}", trust) for k, d in described.items()}
    content = described[tag]
    if tag == "$pickle":
        return _unpickled(content, described["type"], place, trust)
    if tag == "$class":
        try:
            return named_class(content, trust)
        except CheckpointError as error:
            raise CheckpointError(f"{place}: {error}; {remedy(place)}") from error
    if tag in ("$tensor", "$array"):
        return _decode_tensor(tag, content, described.get("order"), tensors)
    if tag == "$dtype":
        return _torch_type(content)
    inner = decode(content, tensors, place, trust)
    if tag == "$number":
        return _number(*inner)
    if tag not in _restorers:
        raise CheckpointError(f"{place}: a value of the unknown kind {tag}")
    return _restorers[tag](inner)


def remedy(place: str) -> str:
    """What a user can do about a value that needs trust."""
    attribute = place.split(".")[1] if "." in place else place
    return (
        "trust=True reads it, which can run any code of who wrote the file; or give it yourself, "
        f"custom_objects={{{attribute!r}: ...}}"
    )


def _encode_mapping(
    value: Mapping[Any, Any], tensors: dict[str, Tensor], place: str
) -> dict[str, Json]:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: encode(item, tensors, f"{place}.{key}") for key, item in value.items()}
    items = [
        [encode(key, tensors, place), encode(item, tensors, f"{place}.{key}")]
        for key, item in value.items()
    ]
    return {"$items": items}


def _encode_tensor(value: Tensor, tensors: dict[str, Tensor], place: str) -> dict[str, Json]:
    """Keeps the order of its dimensions in memory too: products of matrices round by it."""
    strides = value.stride()
    order = sorted(range(value.ndim), key=lambda d: (-strides[d], d))
    if order == list(range(value.ndim)):
        return {"$tensor": _keep(value, tensors, place)}
    return {"$tensor": _keep(value.permute(order), tensors, place), "order": order}


def _decode_tensor(
    tag: str, name: str, order: list[int] | None, tensors: Mapping[str, Tensor]
) -> Tensor | np.ndarray[Any, Any]:
    value = tensors[name]
    if order is not None:
        value = value.permute([order.index(d) for d in range(len(order))])
    return value if tag == "$tensor" else value.cpu().numpy()


def _keep(value: Tensor, tensors: dict[str, Tensor], place: str) -> str:
    """Copies a tensor to where nothing changes it, and returns its name."""
    while place in tensors:
        place += "'"
    tensors[place] = value.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return place


def _number(name: str, value: complex) -> np.generic:
    dtype = np.dtype(name)
    if dtype.kind not in "biuf":
        raise CheckpointError(f"no number is of the type {name}")
    number: np.generic = dtype.type(value)
    return number


def _torch_type(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"torch has no type {name!r}")
    return found


def _unpickled(content: str, kind: str, place: str, trust: bool) -> Any:  # noqa: ANN401
    if not trust:
        raise CheckpointError(f"{place}: a pickled {kind}; {remedy(place)}")
    return pickle.loads(base64.b64decode(content))
