"""Classes that a file may name: those of known packages, if they are of a known kind."""

import enum
import importlib
import sys
from collections.abc import Iterable
from typing import Any

import torch

from npg.errors import CheckpointError

# Nothing in these packages does more at import than to define something.
_packages: set[str] = {"torch.nn", "torch.optim", "npg"}
_bases: list[type] = [torch.nn.Module, torch.optim.Optimizer]
_plain = {
    f"builtins:{kind.__name__}"
    for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)
}


def accept_classes(packages: Iterable[str], bases: Iterable[type]) -> None:
    """Lets checkpoints name more classes.

    Args:
        packages: Where they are defined, or below.
        bases: Of one of which each is a subclass.
    """
    _packages.update(packages)
    _bases.extend(bases)


def class_name(described: type) -> str | None:
    """The name by which a file can refer to a class; None where it cannot be imported by one."""
    if described.__module__ == "__main__":
        return None  # another program's is another module
    name = f"{described.__module__}:{described.__qualname__}"
    return name if _defined(name) is described else None


def is_accepted(name: str) -> bool:
    """Whether a class of this name is found without trust."""
    try:
        named_class(name, trust=False)
    except CheckpointError:
        return False
    return True


def named_class(name: str, trust: bool) -> type:
    """Finds the class of a name.

    Args:
        name: As :func:`class_name` gave it.
        trust: Whether any package is imported for it.

    Returns:
        The class.

    Raises:
        CheckpointError: If there is none, or it is not among those accepted.
    """
    module = name.partition(":")[0]
    known = any(module == p or module.startswith(f"{p}.") for p in _packages)
    if (known and not module.endswith("__main__")) or name in _plain or trust:
        try:
            importlib.import_module(module)
        except Exception as error:  # a module can raise whatever it likes
            raise CheckpointError(f"the class {name}: {error}") from error
        found = _defined(name)
        accepted = trust or name in _plain
        if isinstance(found, type) and (accepted or issubclass(found, tuple(_bases))):
            return found
    raise CheckpointError(f"the class {name} is none of those that a checkpoint may name")


def data_class(name: str, trust: bool) -> type:
    """Finds an enumeration, or a tuple with named fields: using one runs nothing of the file's.

    Args:
        name: As :func:`class_name` gave it.
        trust: Whether its module is imported if the program has not done so.

    Returns:
        The class.

    Raises:
        CheckpointError: If the program has no such class.
    """
    if trust:
        found: Any = named_class(name, trust)
    else:
        found = _defined(name)
    if isinstance(found, type) and (isinstance(found, enum.EnumMeta) or has_named_fields(found)):
        return found
    raise CheckpointError(
        f"no enumeration or named tuple {name} was imported: import its module first"
    )


def has_named_fields(kind: type) -> bool:
    """Whether a class is one of those that ``collections.namedtuple`` makes, or a subclass."""
    return issubclass(kind, tuple) and isinstance(vars(kind).get("_fields"), tuple)


def _defined(name: str) -> Any:  # noqa: ANN401
    """What an imported module defines under a dotted name; None if it has no such thing."""
    # Looked up in dictionaries only: asking with getattr() can run code, and import more.
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        if found is None or not (isinstance(found, type) or found is sys.modules.get(module)):
            return None
        found = vars(found).get(part)
    return found
