"""Checkpoints that run no code: safetensors and JSON in one file, sealed by its SHA-256.

::

    with replacing(path) as temporary, open(temporary, "wb") as file:
        checkpoints.write(file, {"model": model.state_dict(), "step": 3})
    saved = checkpoints.read(path)["model"]
"""

import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch

from npg.checkpoints import kinds as _kinds  # noqa: F401 - makes them known
from npg.checkpoints.archive import content_of, is_sealed, members_of, read_archive, write_archive
from npg.checkpoints.classes import accept_classes, named_class
from npg.checkpoints.tensors import is_plain
from npg.checkpoints.values import Description, Reader, Remedy, register, trust_remedy
from npg.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "accept_classes",
    "content_of",
    "is_plain",
    "is_sealed",
    "members_of",
    "named_class",
    "opened",
    "read",
    "register",
    "trust_remedy",
    "write",
]

FORMAT = 1
_VALUES, _TENSORS = "values.json", "tensors.safetensors"


class Checkpoint(Mapping[str, Any]):
    """What a file holds; every entry is made when it is asked for, anew each time.

    Args:
        name: Of the file, for errors.
        described: Entries as JSON.
        reader: Makes them.
    """

    def __init__(self, name: str, described: dict[str, Any], reader: Reader) -> None:
        self.name = name
        self._described = described
        self._reader = reader

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401
        return self._value(key, self._described[key])

    def __contains__(self, key: object) -> bool:
        return key in self._described

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __len__(self) -> int:
        return len(self._described)

    def names(self, key: str) -> Collection[str]:
        """What an entry that is a dictionary has, of which nothing is made for this."""
        return self._dictionary(key).keys()

    def without(self, key: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """An entry that is a dictionary, some items of which are given and not read.

        Args:
            key: Of the entry.
            given: Those items; others than the file has are ignored.

        Returns:
            The dictionary.
        """
        return {
            name: given[name] if name in given else self._value(f"{key}.{name}", item)
            for name, item in self._dictionary(key).items()
        }

    def _dictionary(self, key: str) -> dict[str, Any]:
        described = self._described[key]
        if not isinstance(described, dict) or next(iter(described), "").startswith("$"):
            raise CheckpointError(f"{self.name}: {key} is no dictionary of attributes")
        return described

    def _value(self, place: str, described: Any) -> Any:  # noqa: ANN401
        try:
            return self._reader.value(described, place)
        except CheckpointError as error:
            raise CheckpointError(f"{self.name}: {error}") from error


def write(file: IO[bytes], entries: Mapping[str, Any], remedy: Remedy = trust_remedy) -> None:
    """Writes a checkpoint, where the file's position is.

    Args:
        file: Open for writing.
        entries: Nested dictionaries, lists, tuples, numbers, strings, tensors, arrays, and what
            else :mod:`npg.checkpoints.kinds` lists or was registered. Anything else is pickled,
            with a warning, and needs ``trust=True`` to be read.
        remedy: Words for that warning, given a place.

    Raises:
        CheckpointError: If a value nests too deep to be read back, or contains itself.
    """
    description = Description()
    described = {key: description.of(value, key) for key, value in entries.items()}
    for place, what in description.untrusted.items():
        warnings.warn(
            f"{place} is saved as {what}, which loading refuses by default: {remedy(place)}",
            stacklevel=2,
        )
    values = json.dumps({"format": FORMAT, "entries": described}, indent=1)
    tensors = safetensors.torch.save(description.tensors)
    write_archive(file, {_VALUES: values.encode(), _TENSORS: tensors})


def read(
    file: IO[bytes] | Path,
    device: torch.device | str = "cpu",
    trust: bool = False,
    remedy: Remedy = trust_remedy,
) -> Checkpoint:
    """Reads a checkpoint, after it was checked that every byte of it is as it was written.

    Args:
        file: Path, or open for reading: from its position to its end.
        device: Where tensors go.
        trust: Whether to unpickle what :func:`write` had to pickle. This runs whatever code the
            file's author put there.
        remedy: What errors about such values tell to do, given a place.

    Returns:
        The entries.

    Raises:
        CheckpointError: If the file is missing, truncated, changed, or something else.
    """
    if isinstance(file, Path):
        if not file.is_file():
            raise CheckpointError(f"there is no checkpoint {file}")
        with open(file, "rb") as stream:
            return read(stream, device, trust, remedy)
    name = str(getattr(file, "name", "the checkpoint"))
    return opened(content_of(file, name), name, device, trust, remedy)


def opened(
    file: bytes,
    name: str,
    device: torch.device | str = "cpu",
    trust: bool = False,
    remedy: Remedy = trust_remedy,
) -> Checkpoint:
    """Reads a checkpoint whose bytes are there already, as :func:`read` does.

    Args:
        file: Its bytes.
        name: What errors call it.
        device: Where tensors go.
        trust: Whether to unpickle.
        remedy: What errors about pickles tell to do.

    Returns:
        The entries.

    Raises:
        CheckpointError: If it is truncated, changed, or something else.
    """
    members = read_archive(file, name)
    try:
        content = json.loads(members[_VALUES])
        number, described = content["format"], content["entries"]
        tensors = safetensors.torch.load(members[_TENSORS])
    except Exception as error:  # whatever bytes that nobody wrote lead to
        raise CheckpointError(f"{name} is no checkpoint of this library: {error!r}") from error
    if number != FORMAT:
        raise CheckpointError(
            f"{name} has format {number!r}, and this version of npg reads {FORMAT}: update npg"
        )
    if not isinstance(described, dict):
        raise CheckpointError(f"{name} is no checkpoint of this library: it has no entries")
    return Checkpoint(name, described, Reader(tensors, device, trust, remedy))
