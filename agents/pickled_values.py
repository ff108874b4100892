"""Makes the data that settings of Stable-Baselines3 consist of, from what their pickles say.

Spaces, arrays, schedules and containers are made here, each by a function that checks what it
gets; classes are looked up among those that a checkpoint may name. Anything else is refused by its
name. Generators of random numbers inside spaces are left out.
"""

import collections
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from agents import described_spaces, pickles
from agents.pickles import Made, Named
from npg.checkpoints import is_plain, named_class
from npg.errors import CheckpointError

Maker = Callable[["Values", Made], Any]

MAX_DEPTH = 100
# Of values, each counted as often as it occurs: what is shared may be much more than the file.
MAX_SIZE = 10_000_000


class Values:
    """Makes values of one pickle.

    Args:
        makers: More of them than this module's, by what they stand for.
    """

    def __init__(self, makers: Mapping[str, Maker] | None = None) -> None:
        self._makers = {**_MAKERS, **(makers or {})}
        # By identity, with what has it: the value, and how many there are in it.
        self._done: dict[int, tuple[Any, Any, int]] = {}
        self._open: set[int] = set()
        self._count = 0

    def of(self, value: Any) -> Any:
        """Makes a value.

        Args:
            value: What :func:`agents.pickles.read` returned, or something in it.

        Returns:
            The same where it is a number or a string.

        Raises:
            CheckpointError: If it asks for what is not known, contains itself, or is enormous.
        """
        if not isinstance(value, Made | Named | list | tuple | dict):
            self._count += 1
            return value
        if id(value) in self._done:
            _, made, count = self._done[id(value)]
            self._count += count
        else:
            if id(value) in self._open or len(self._open) >= MAX_DEPTH:
                raise CheckpointError(f"it nests deeper than {MAX_DEPTH}, or contains itself")
            before, self._count = self._count, 1
            self._open.add(id(value))
            made = self._made(value)
            self._open.remove(id(value))
            self._done[id(value)] = value, made, self._count
            self._count += before
        if self._count > MAX_SIZE:
            raise CheckpointError(f"it consists of more than {MAX_SIZE:,} values")
        return made

    def _made(self, value: Any) -> Any:
        if isinstance(value, Named):
            return _class(value)
        if isinstance(value, list):
            return [self.of(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self.of(item) for item in value)
        if isinstance(value, dict):
            return {key: self.of(item) for key, item in value.items()}
        if value.of not in self._makers:
            raise CheckpointError(f"it asks for {value.of}, which no such file needs")
        return self._makers[value.of](self, value)

    def state(self, made: Made, *names: str) -> dict[str, Any]:
        """Makes some of the attributes that an object is to get; those absent are left out."""
        if not isinstance(made.state, dict):
            raise CheckpointError(f"a {made.of} without its attributes")
        return {name: self.of(made.state[name]) for name in names if name in made.state}


def read(pickled: bytes) -> Any:
    """Reads a pickle.

    Args:
        pickled: The program.

    Returns:
        The value.

    Raises:
        CheckpointError: If it is damaged, or asks for something that is no data.
    """
    program = pickles.read(pickled)
    try:
        return Values().of(program)
    except CheckpointError:
        raise
    except Exception as error:  # whatever arguments that nobody pickled lead to
        raise CheckpointError(f"it says what cannot be: {error!r}") from error


def _class(named: Named) -> type:
    if named.module == "numpy":
        found = vars(np).get(named.name)
        if isinstance(found, type) and issubclass(found, np.generic) and is_plain(np.dtype(found)):
            return found
    try:
        return named_class(f"{named.module}:{named.name}", trust=False)
    except CheckpointError as error:
        raise CheckpointError(f"it asks for {named.full}, which no such file needs") from error


# ------------------------------------------------------------------------------------- containers


def _scalars(values: Values, items: Any) -> list[Any]:
    """Elements of a set; hashing tuples of tuples can take for ever."""
    made = values.of(list(items))
    if not all(isinstance(item, str | int | float | bytes | None) for item in made):
        raise CheckpointError("a set of other things than numbers and strings")
    return made


def _set(values: Values, made: Made) -> set[Any]:
    (items,) = made.arguments or ([],)
    return {*_scalars(values, items), *_scalars(values, made.items)}


def _deque(values: Values, made: Made) -> collections.deque[Any]:
    items, maximum = (*made.arguments, (), None)[:2]
    return collections.deque([*values.of(items), *values.of(made.items)], maximum)


def _ordered(values: Values, made: Made) -> collections.OrderedDict[Any, Any]:
    (items,) = made.arguments or ([],)
    found = collections.OrderedDict(
        (pickles.key(key), values.of(value)) for key, value in [*items, *made.pairs]
    )
    if isinstance(made.state, dict) and "_metadata" in made.state:  # of Module.state_dict
        vars(found)["_metadata"] = values.of(made.state["_metadata"])
    return found


def _encoded(_: Values, made: Made) -> bytes:
    """How bytes were pickled before there was an instruction for them."""
    text, encoding = made.arguments
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise CheckpointError("text that is encoded in another way than bytes are")
    return text.encode("latin1")


def _bytearray(values: Values, made: Made) -> bytearray:
    content, *encoding = values.of(made.arguments) or (b"",)
    if isinstance(content, str) and encoding == ["latin-1"]:
        content = content.encode("latin-1")
    if not isinstance(content, bytes):
        raise CheckpointError("a bytearray of what is no bytes")
    return bytearray(content)


def _of_numbers(kind: Callable[..., Any]) -> Maker:
    """A range, a slice, a complex number."""

    def make(_: Values, made: Made) -> Any:
        if not all(isinstance(argument, int | float | None) for argument in made.arguments):
            raise CheckpointError(f"a {made.of} of other things than numbers")
        return kind(*made.arguments)

    return make


def _path(_: Values, made: Made) -> pathlib.Path:
    if not all(isinstance(part, str) for part in made.arguments):
        raise CheckpointError("a path of what are no strings")
    return pathlib.Path(*made.arguments)


# ------------------------------------------------------------------------------------------ numpy


def _dtype(values: Values, made: Made) -> np.dtype[Any]:
    """A number's type only: of what else there is, the interpreter's memory is not safe."""
    name = made.arguments[0]
    found = np.dtype(name) if isinstance(name, str) and len(name) <= 4 else None
    if found is None or not is_plain(found):
        raise CheckpointError(f"it asks for the data type {str(name)[:20]}, which is no number's")
    if made.state is None:
        return found
    _, order, *rest = made.state
    if order not in ("<", ">", "|", "=") or rest[:3] != [None, None, None] or any(rest[5:]):
        raise CheckpointError("it asks for a data type with a state that no number's has")
    return found.newbyteorder(order)


def _array_of(content: Any, dtype: Any, shape: Any, order: str) -> np.ndarray[Any, Any]:
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes | bytearray):
        raise CheckpointError("an array of other things than numbers")
    shape = shape if isinstance(shape, tuple) else (shape,)
    if not all(isinstance(size, int) and size >= 0 for size in shape) or (
        math.prod(shape) * dtype.itemsize != len(content)
    ):
        raise CheckpointError(f"an array of shape {shape} that has {len(content)} bytes")
    flat = np.frombuffer(bytearray(content), dtype)
    if dtype.kind == "b":
        flat = flat.view(np.uint8) != 0  # a third truth value, and numpy writes past its arrays
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _array(values: Values, made: Made) -> np.ndarray[Any, Any]:
    _, shape, dtype, fortran, content = values.of(made.state)
    return _array_of(content, dtype, shape, "F" if fortran else "C")


def _array_from_buffer(values: Values, made: Made) -> np.ndarray[Any, Any]:
    return _array_of(*values.of(made.arguments))


def _scalar(values: Values, made: Made) -> Any:
    dtype, content = values.of(made.arguments)
    return _array_of(content, dtype, (), "C")[()]


# ------------------------------------------------------------------------------ spaces, schedules


def _box(values: Values, made: Made) -> spaces.Box:
    names = ("low", "high", "dtype", "bounded_below", "bounded_above")
    return described_spaces.box(**values.state(made, *names))


def _discrete(values: Values, made: Made) -> spaces.Discrete:
    return described_spaces.discrete(**values.state(made, "n", "start", "dtype"))


def _multi_discrete(values: Values, made: Made) -> spaces.MultiDiscrete:
    return described_spaces.multi_discrete(**values.state(made, "nvec", "start", "dtype"))


def _multi_binary(values: Values, made: Made) -> spaces.MultiBinary:
    return described_spaces.multi_binary(**values.state(made, "n"))


def _dictionary(values: Values, made: Made) -> spaces.Dict:
    return described_spaces.dictionary(values.state(made, "spaces")["spaces"].items())


def _product(values: Values, made: Made) -> spaces.Tuple:
    return spaces.Tuple(values.state(made, "spaces")["spaces"])


_SPACES: dict[str, Maker] = {
    "box.Box": _box,
    "discrete.Discrete": _discrete,
    "multi_discrete.MultiDiscrete": _multi_discrete,
    "multi_binary.MultiBinary": _multi_binary,
    "dict.Dict": _dictionary,
    "tuple.Tuple": _product,
}
_SCHEDULES = "stable_baselines3.common.utils"
_NUMPY = ("numpy.core", "numpy._core")  # the one before NumPy 2
_MAKERS: dict[str, Maker] = {
    "builtins.set": _set,
    "builtins.frozenset": lambda values, made: frozenset(_set(values, made)),
    "builtins.slice": _of_numbers(slice),
    "builtins.range": _of_numbers(range),
    "builtins.xrange": _of_numbers(range),
    "builtins.bytes": lambda values, made: bytes(_bytearray(values, made)),
    "builtins.complex": _of_numbers(complex),
    "builtins.bytearray": _bytearray,
    "collections.deque": _deque,
    "collections.OrderedDict": _ordered,
    "_codecs.encode": _encoded,
    **{f"pathlib.{kind}Path": _path for kind in ("Posix", "Windows")},
    "torch.device": lambda _, made: torch.device(str(made.arguments[0])),
    "torch.Size": lambda values, made: torch.Size(*values.of(made.arguments)),
    "numpy.dtype": _dtype,
    **{f"{package}.multiarray._reconstruct": _array for package in _NUMPY},
    **{f"{package}.multiarray.scalar": _scalar for package in _NUMPY},
    **{f"{package}.numeric._frombuffer": _array_from_buffer for package in _NUMPY},
    # Stable-Baselines3 before 2.0 had gym's, of which Gymnasium's are the continuation.
    **{f"{p}.spaces.{name}": m for p in ("gymnasium", "gym") for name, m in _SPACES.items()},
    f"{_SCHEDULES}.ConstantSchedule": lambda v, m: described_spaces.constant(**v.state(m, "val")),
    f"{_SCHEDULES}.LinearSchedule": lambda v, m: described_spaces.linear(
        **v.state(m, "start", "end", "end_fraction")
    ),
    f"{_SCHEDULES}.FloatSchedule": lambda v, m: described_spaces.of_numbers(
        **v.state(m, "value_schedule")
    ),
}
