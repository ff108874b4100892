"""Options as dataclasses: read from a file, checked, compared."""

import dataclasses
import typing
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any

from npg.errors import ConfigurationError


def checked(kind: type, values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Refuses unknown names; makes of YAML's lists and strings what the fields expect.

    Args:
        kind: A dataclass, or one with its type parameter filled in.
        values: Of fields, by name.
        source: Where they come from, for messages.

    Returns:
        The values, numbers and paths as the fields have them.

    Raises:
        ConfigurationError: If a name is no field's, or a value no number where one is expected.
    """
    types = typing.get_type_hints(typing.get_origin(kind) or kind)
    unknown = [name for name in values if name not in types]
    if unknown:
        raise ConfigurationError(f"{source}: unknown {', '.join(unknown)}")
    converted = {}
    for name, value in values.items():
        kinds = {*typing.get_args(types[name])} or {types[name]}  # of X | None, both
        if isinstance(value, list):
            value = tuple(value)
        if value is not None and Path in kinds:
            value = Path(value)
        if kinds <= {int, float, NoneType} and not (value is None and NoneType in kinds):
            value = _number(value, float in kinds, f"{source}: {name}")
        converted[name] = value
    return converted


def _number(value: Any, real: bool, name: str) -> float:
    """Returns a number, also one that YAML 1.1 takes for a string, as it does 1e5."""
    number = value
    if isinstance(value, str):
        with suppress(ValueError):
            number = float(value)
    if not real and isinstance(number, float) and number.is_integer():
        number = int(number)
    if type(number) is int or (real and isinstance(number, float)):  # a bool is an int, too
        return number
    raise ConfigurationError(
        f"{name} must be a {'number' if real else 'whole number'}, got {value!r}: write one, such "
        f"as {'0.001' if real else '1000'}, or leave {name.split()[-1]} out"
    )


def at_least(options: Any, least: int, *names: str) -> None:
    """Refuses a number that is too small."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            bound = "must not be negative" if least == 0 else f"must be at least {least}"
            raise ConfigurationError(f"{name} {bound}, got {value}")


def changed(options: Any, run: Any, but: Collection[str] = ()) -> list[str]:
    """Returns the names of the fields in which two dataclasses differ, some left out."""
    return [
        field.name
        for field in dataclasses.fields(run)
        if field.name not in but and getattr(options, field.name) != getattr(run, field.name)
    ]


def refuse(names: Collection[str], run: str) -> None:
    """Raises if a resumed run would not be the same run.

    Args:
        names: Of the options that differ.
        run: Which run.

    Raises:
        ConfigurationError: If there are any.
    """
    if names:
        raise ConfigurationError(
            f"{', '.join(names)} differ from those of {run}, which a resumed run keeps: leave them "
            "out, or start a new run"
        )
