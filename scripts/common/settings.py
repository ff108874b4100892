"""Options as dataclasses: read from a file, checked, compared."""

import dataclasses
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from npg.errors import ConfigurationError


def checked(kind: type, values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Refuses unknown names; makes of YAML's lists and strings what the fields expect."""
    fields = {field.name: field for field in dataclasses.fields(typing.get_origin(kind) or kind)}
    unknown = [name for name in values if name not in fields]
    if unknown:
        raise ConfigurationError(f"{source}: unknown {', '.join(unknown)}")
    converted = {}
    for name, value in values.items():
        if isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str) and "float" in str(fields[name].type):
            value = float(value)  # YAML 1.1 reads 1e-3 as a string
        kind_of_field = fields[name].type
        if value is not None and Path in (kind_of_field, *typing.get_args(kind_of_field)):
            value = Path(value)
        converted[name] = value
    return converted


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
