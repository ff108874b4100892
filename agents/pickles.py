"""Reads a pickle without doing what it says.

A pickle is a program for a small machine. This is that machine, with one difference: where the
program names a function or a class, calls it, or changes what came of a call, nothing is looked up
and nothing called. :class:`Named` and :class:`Made` stand in the result for it, and
:mod:`agents.pickled_values` makes of them what it knows.
"""

import pickletools
from dataclasses import dataclass, field
from typing import Any

from npg.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class Named:
    """A function or class that a pickle names.

    Attributes:
        module: Where it is said to be.
        name: What it is called there.
    """

    module: str
    name: str

    @property
    def full(self) -> str:
        """Both, with a dot between."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Made:
    """A call that a pickle asks for.

    Attributes:
        of: What would be called.
        arguments: With what.
        items: What would be appended to the result.
        pairs: What would be put into it, by keys.
        state: What its ``__setstate__`` would get; None for nothing.
    """

    of: str
    arguments: tuple[Any, ...]
    items: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    state: Any = None


# What refers to something that is kept beside a pickle: tensors' memory, in files of torch.
BESIDE = "persistent_load"

_MARK = object()
_NOTHING = {"PROTO", "FRAME"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
# Protocols before 3 have the names of Python 2.
_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SCALARS = (str, int, float, bytes, type(None))


def read(pickled: bytes) -> Any:
    """Reads a pickle.

    Args:
        pickled: The program.

    Returns:
        Its result: literals, lists, tuples and dictionaries, and in them :class:`Named` and
        :class:`Made`.

    Raises:
        CheckpointError: If it is none, or does what no pickle of data does.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STOP":
                return machine.pop()
            machine.do(opcode.name, argument)
    except CheckpointError:
        raise
    except Exception as error:  # of bytes that are no program
        raise CheckpointError(f"its pickle is damaged: {error!r}") from error
    raise CheckpointError("its pickle has no end")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        """Executes an instruction."""
        if name in _NOTHING:
            return
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in _TUPLES:
            self.stack.append(self.last(_TUPLES[name]))
        elif (instruction := getattr(self, f"do_{name.lower()}", None)) is not None:
            instruction(*(() if argument is None else (argument,)))
        elif name.endswith("GET"):
            self.stack.append(self.memo[argument])
        elif name.endswith("PUT"):
            self.memo[argument] = self.stack[-1]
        else:
            raise CheckpointError(f"its pickle has the instruction {name}, which no data needs")

    def pop(self) -> Any:
        """Takes the last value."""
        value = self.stack.pop()
        if value is _MARK:
            raise CheckpointError("its pickle is damaged: a mark is no value")
        return value

    def last(self, number: int) -> tuple[Any, ...]:
        """Takes some values, in their order."""
        return tuple(reversed([self.pop() for _ in range(number)]))

    def marked(self) -> list[Any]:
        """Takes the values down to the last mark."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    # ------------------------------------------------------------------------------ stack and memo

    def do_mark(self) -> None:
        self.stack.append(_MARK)

    def do_pop(self) -> None:
        self.stack.pop()

    def do_pop_mark(self) -> None:
        self.marked()

    def do_dup(self) -> None:
        self.stack.append(self.stack[-1])

    def do_memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    # ---------------------------------------------------------------------------------- containers

    def do_tuple(self) -> None:
        self.stack.append(tuple(self.marked()))

    def do_list(self) -> None:
        self.stack.append(self.marked())

    def do_empty_list(self) -> None:
        self.stack.append([])

    def do_empty_dict(self) -> None:
        self.stack.append({})

    def do_dict(self) -> None:
        values = self.marked()
        self.stack.append({})
        self._put(values)

    def do_empty_set(self) -> None:
        self.stack.append(Made("builtins.set", ()))

    def do_frozenset(self) -> None:
        self.stack.append(Made("builtins.frozenset", (self.marked(),)))

    def do_append(self) -> None:
        self._extend([self.pop()])

    def do_appends(self) -> None:
        self._extend(self.marked())

    def do_additems(self) -> None:
        self._extend(self.marked())

    def do_setitem(self) -> None:
        self._put(list(self.last(2)))

    def do_setitems(self) -> None:
        self._put(self.marked())

    def _extend(self, values: list[Any]) -> None:
        into = self.stack[-1]
        if not isinstance(into, list | Made):
            raise CheckpointError("its pickle appends to what is no list")
        (into if isinstance(into, list) else into.items).extend(values)

    def _put(self, values: list[Any]) -> None:
        into = self.stack[-1]
        pairs = [(key(name), value) for name, value in zip(values[::2], values[1::2], strict=True)]
        if isinstance(into, dict):
            into.update(pairs)
        elif isinstance(into, Made):
            into.pairs.extend(pairs)
        else:
            raise CheckpointError("its pickle puts items into what is no dictionary")

    # ----------------------------------------------------------------------------- names and calls

    def do_global(self, both: str) -> None:
        module, _, name = both.partition(" ")
        self.stack.append(Named(_MODULES.get(module, module), name))

    def do_stack_global(self) -> None:
        module, name = self.last(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise CheckpointError("its pickle is damaged: a name is no string")
        self.stack.append(Named(module, name))

    def do_reduce(self) -> None:
        function, arguments = self.last(2)
        self._call(function, arguments)

    def do_newobj(self) -> None:
        self.do_reduce()

    def do_newobj_ex(self) -> None:
        kind, arguments, keywords = self.last(3)
        if keywords != {}:
            raise CheckpointError("its pickle makes something with keyword arguments")
        self._call(kind, arguments)

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            raise CheckpointError("its pickle calls what is no function")
        if function.full == "copyreg._reconstructor":  # how the first pickles made objects
            function, arguments = arguments[0], ()
            if not isinstance(function, Named):
                raise CheckpointError("its pickle makes an object of no class")
        self.stack.append(Made(function.full, arguments))

    def do_build(self) -> None:
        state = self.pop()
        made = self.stack[-1]
        if not isinstance(made, Made) or made.state is not None:
            raise CheckpointError("its pickle would change a class, or what is finished")
        made.state = state

    def do_binpersid(self) -> None:
        self.stack.append(Made(BESIDE, (self.pop(),)))


def key(value: Any) -> Any:
    """Checks a key of a dictionary.

    Args:
        value: The key.

    Returns:
        The same.

    Raises:
        CheckpointError: If it is no number, string or tuple of such: hashing tuples of tuples of
            tuples can take for ever.
    """
    parts = value if type(value) is tuple else (value,)
    if not all(isinstance(part, _SCALARS) for part in parts):
        raise CheckpointError("its pickle has a key of a dictionary of a kind that no data needs")
    return value
