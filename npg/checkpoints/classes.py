"""Classes that a file may name: those of known packages, if they are of a known kind."""

import importlib
import sys
from collections.abc import Iterable
from typing import Any

import torch

from npg.errors import CheckpointError

# Nothing in these packages does more at import than to define something.
_packages: set[str] = {"torch.nn", "torch.optim", "npg"}
_bases: list[type] = [torch.nn.Module, torch.optim.Optimizer]


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
    name = f"{described.__module__}:{described.__qualname__}"
    importable = described.__module__ in sys.modules and described.__module__ != "__main__"
    return name if importable and _attribute(name) is described else None


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
    if (known and not module.endswith("__main__")) or trust:
        try:
            importlib.import_module(module)
            found = _attribute(name)
        except ImportError as error:
            raise CheckpointError(f"the class {name}: {error}") from error
        if isinstance(found, type) and (trust or issubclass(found, tuple(_bases))):
            return found
    raise CheckpointError(f"the class {name} is none of those that a checkpoint may name")


def _attribute(name: str) -> Any:  # noqa: ANN401
    """What an imported module holds under a dotted name; None if it has no such thing."""
    module, _, path = name.partition(":")
    found: Any = sys.modules[module]
    for part in path.split("."):
        found = getattr(found, part, None)
    return found
