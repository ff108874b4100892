"""Types of Python's, numpy's and torch's own that checkpoints describe."""

import base64
import collections
import pathlib
from typing import Any

import numpy as np
import torch

from npg.checkpoints import tensors
from npg.checkpoints.values import RESTORERS, register
from npg.errors import CheckpointError


def _based(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _bytes(based: str) -> bytes:
    return base64.b64decode(based, validate=True)


def _numpy_type(name: str) -> np.dtype[Any]:
    found: np.dtype[Any] = np.dtype(str(name))
    if not tensors.is_plain(found):
        raise CheckpointError(f"no number is of the type {name}")
    return found


def _torch_type(name: str) -> torch.dtype:
    found = vars(torch).get(name)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"torch has no type {name!r}")
    return found


def _ordered_by_text(items: set[Any] | frozenset[Any]) -> list[Any]:
    """The same set gives the same file."""
    return sorted(items, key=repr)


register("$float", float, repr, float)  # those that JSON has no number for
register("$complex", complex, lambda z: [z.real, z.imag], lambda parts: complex(*parts))
register("$tuple", tuple, list, tuple)
register("$set", set, _ordered_by_text, set)
register("$frozenset", frozenset, _ordered_by_text, frozenset)
register("$bytes", bytes, _based, _bytes)
register("$bytearray", bytearray, _based, lambda based: bytearray(_bytes(based)))
register("$range", range, lambda r: [r.start, r.stop, r.step], lambda parts: range(*parts))
register("$slice", slice, lambda s: [s.start, s.stop, s.step], lambda parts: slice(*parts))
register(
    "$deque",
    collections.deque,
    lambda items: [list(items), items.maxlen],
    lambda described: collections.deque(described[0], described[1]),
)
for _path in (pathlib.PosixPath, pathlib.WindowsPath):
    register("$path", _path, str, pathlib.Path)

register("$str", np.str_, str, np.str_)
# Described in values.py, as each has many types.
RESTORERS["$items"] = dict
RESTORERS["$numpy"] = _numpy_type
RESTORERS["$number"] = lambda parts: parts[0].type(parts[1])
RESTORERS["$scalar"] = lambda dtype: dtype.type

register("$size", torch.Size, list, torch.Size)
register("$device", torch.device, str, torch.device)
register("$dtype", torch.dtype, lambda dtype: str(dtype).removeprefix("torch."), _torch_type)
