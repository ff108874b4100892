"""Values of environments' attributes as data, checked before they are given back."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import numpy as np

from envs import simulations
from envs.known_states import BESIDE

KINDS = {
    kind.__name__: kind
    for kind in (
        *(np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937),
        *(np.random.Philox, np.random.SFC64),
    )
}
# NumPy's own setters believe what they are given, and read memory at such a position.
_LIMITS = {"state": 2**128, "inc": 2**128, "pos": 625, "buffer_pos": 5, "has_uint32": 2}
_LIMITS["uinteger"] = 2**32


def is_data(value: object) -> bool:
    """Say whether a value consists of numbers, strings and arrays, and of containers of them.

    Args:
        value: any.

    Returns:
        Whether it does.
    """
    if isinstance(value, list | tuple | deque):
        return all(map(is_data, value))
    if isinstance(value, dict):
        return all(is_data(key) and is_data(item) for key, item in value.items())
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufS"
    return isinstance(value, bool | int | float | str | np.generic | None)


def described(value: Any, place: str) -> Any:
    """Copy a value out of an environment.

    Args:
        value: data, a generator, or a MuJoCo simulation.
        place: where it stands, for the error.

    Returns:
        Data.

    Raises:
        ValueError: if it is something else.
    """
    if type(value) is np.random.Generator and type(value.bit_generator).__name__ in KINDS:
        return dict(value.bit_generator.state)
    if simulations.is_mujoco(value, "MjData"):
        return simulations.arrays(value)
    if not is_data(value):
        raise ValueError(f"{place} is of a kind that cannot be saved: {type(value).__name__}")
    return str(value) if isinstance(value, np.str_) else deepcopy(value)


def setting(attributes: dict[str, Any], name: str, saved: Any, place: str) -> Callable[[], None]:
    """Check a saved value, and say how to put it in its place.

    Args:
        attributes: of the environment, where there may be none of that name yet.
        name: of the attribute.
        saved: what `described` returned.
        place: where it stands, for errors.

    Returns:
        A function that does it, and does not fail.

    Raises:
        ValueError: if it is nothing that belongs there.
    """
    current = attributes.get(name)
    if simulations.is_mujoco(current, "MjData"):
        return simulations.setting(current, saved, place)
    if isinstance(saved, Mapping) and "bit_generator" in saved:
        return _setting_generator(attributes, name, generator(saved, place))
    if isinstance(current, np.random.Generator) or not is_data(saved):
        raise ValueError(f"{place} is not what was taken there")
    copy = deepcopy(saved)
    return lambda: attributes.__setitem__(name, copy)


def generator(saved: Mapping[str, Any], place: str) -> np.random.Generator:
    """Make a generator that is in a saved state.

    Args:
        saved: the `state` of its bit generator.
        place: where it stands, for the error.

    Returns:
        A new one.

    Raises:
        ValueError: if it is the state of none of NumPy's, or has a number out of its range.
    """
    if saved["bit_generator"] not in KINDS:
        raise ValueError(f"{place}: NumPy has no bit generator {saved['bit_generator']!r}")
    bits = KINDS[saved["bit_generator"]](0)
    _check(saved, bits.state, place)
    bits.state = saved
    return np.random.Generator(bits)


def _check(saved: Any, example: Any, place: str) -> None:
    """Raise a ValueError unless the state of a bit generator is like an example of it."""
    if isinstance(example, dict):
        if not isinstance(saved, Mapping) or saved.keys() != example.keys():
            raise ValueError(f"{place} is not the state of such a generator")
        for name, value in example.items():
            _check(saved[name], value, f"{place}.{name}")
        return
    if isinstance(example, np.ndarray):
        same = isinstance(saved, np.ndarray) and (saved.dtype, saved.shape) == (
            example.dtype,
            example.shape,
        )
    elif isinstance(example, int):
        same = type(saved) is int and 0 <= saved < _LIMITS[place.rpartition(".")[2]]
    else:
        same = saved == example
    if not same:
        raise ValueError(f"{place} cannot be {saved!r}")


def _setting_generator(
    attributes: dict[str, Any], name: str, new: np.random.Generator
) -> Callable[[], None]:
    current = attributes.get(name)
    if not isinstance(current, np.random.Generator) or type(current.bit_generator) is not type(
        new.bit_generator
    ):
        return lambda: attributes.__setitem__(name, new)  # made at the first reset

    def put() -> None:  # in its place, since others may hold it
        current.bit_generator.state = new.bit_generator.state

    return put


def digest(value: object) -> str:
    """Digest a setting, so that it can be compared without being kept.

    Args:
        value: data, or a MuJoCo model. What only concerns drawing does not count in dictionaries.

    Returns:
        SHA-256, hexadecimal.
    """
    found = hashlib.sha256()
    _add(found, simulations.physics(value) if simulations.is_mujoco(value, "MjModel") else value)
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    if isinstance(value, dict) and value and not any(isinstance(key, str) for key in value):
        found.update(repr(value).encode())  # a table of thousands of transitions: ten times as fast
    elif isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items() if key not in BESIDE]
        for item in sorted(items, key=lambda item: item[0]):
            _add(found, item)
    elif isinstance(value, list | tuple | deque):
        found.update(f"{len(value)}(".encode())
        for item in value:
            _add(found, item)
    elif isinstance(value, np.ndarray):
        found.update(f"{value.dtype.str}{value.shape}".encode() + value.tobytes())
    else:
        found.update(f"{value!r};".encode())
