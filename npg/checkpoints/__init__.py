"""Checkpoints that run no code: safetensors and JSON in one file, sealed by its SHA-256.

::

    with replacing(path) as temporary, open(temporary, "wb") as file:
        checkpoints.write(file, {"model": model.state_dict(), "step": 3})
    saved = checkpoints.read(path)["model"]
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch

from npg.checkpoints.archive import is_sealed, read_archive, write_archive
from npg.checkpoints.classes import accept_classes, named_class
from npg.checkpoints.values import decode, encode, register, remedy
from npg.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "accept_classes",
    "is_sealed",
    "named_class",
    "read",
    "register",
    "remedy",
    "write",
]

FORMAT = 1
_VALUES, _TENSORS = "values.json", "tensors.safetensors"


class Checkpoint(Mapping[str, Any]):
    """What a file holds; every entry is made when it is asked for.

    Args:
        name: Of the file, for errors.
        described: Entries as JSON.
        tensors: Which they name.
        trust: Whether entries may be pickled.
    """

    def __init__(
        self, name: str, described: dict[str, Any], tensors: dict[str, torch.Tensor], trust: bool
    ) -> None:
        self.name = name
        self._described = described
        self._tensors = tensors
        self._trust = trust

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401
        return self._decoded(key, self._described[key])

    def __contains__(self, key: object) -> bool:
        return key in self._described

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __len__(self) -> int:
        return len(self._described)

    def names(self, key: str) -> Collection[str]:
        """What an entry that is a dictionary has, of which nothing is made for this."""
        described = self._described[key]
        if not isinstance(described, dict):
            raise CheckpointError(f"{self.name}: {key} is no dictionary")
        return described.keys()

    def without(self, key: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """An entry that is a dictionary, some items of which are given and not read.

        Args:
            key: Of the entry.
            given: Those items; others than the file has are ignored.

        Returns:
            The dictionary.
        """
        return {
            name: given[name] if name in given else self._decoded(f"{key}.{name}", item)
            for name, item in self._described[key].items()
        }

    def _decoded(self, place: str, described: Any) -> Any:  # noqa: ANN401
        try:
            return decode(described, self._tensors, place, self._trust)
        except CheckpointError as error:
            raise CheckpointError(f"{self.name}: {error}") from error
        except Exception as error:  # whatever a value that nobody wrote leads to
            raise CheckpointError(f"{self.name}: {place} cannot be read: {error!r}") from error


def write(file: IO[bytes], entries: Mapping[str, Any]) -> None:
    """Writes a checkpoint.

    Args:
        file: Open for writing.
        entries: Nested dictionaries, lists, tuples, numbers, strings, tensors and arrays. Anything
            else is pickled, and needs ``trust=True`` to be read.
    """
    tensors: dict[str, torch.Tensor] = {}
    described = {key: encode(value, tensors, key) for key, value in entries.items()}
    values = json.dumps({"format": FORMAT, "entries": described}, indent=1)
    write_archive(file, {_VALUES: values.encode(), _TENSORS: safetensors.torch.save(tensors)})


def read(
    file: IO[bytes] | Path, device: torch.device | str = "cpu", trust: bool = False
) -> Checkpoint:
    """Reads a checkpoint, after it was checked that every byte of it is as it was written.

    Args:
        file: Path, or open for reading and seekable.
        device: Where tensors go.
        trust: Whether to unpickle what :func:`write` had to pickle. This runs whatever code the
            file's author put there.

    Returns:
        The entries.

    Raises:
        CheckpointError: If the file is missing, truncated, changed, or something else.
    """
    if isinstance(file, Path):
        if not file.is_file():
            raise CheckpointError(f"there is no checkpoint {file}")
        with open(file, "rb") as opened:
            return read(opened, device, trust)
    name = str(getattr(file, "name", "the checkpoint"))
    members = read_archive(file, name)
    try:
        content = json.loads(members[_VALUES])
        number, described = content["format"], content["entries"]
        # Copies: what lies in a file's bytes need not begin where vectors are loaded fast.
        tensors = {
            key: tensor.to(device, copy=True)
            for key, tensor in safetensors.torch.load(members[_TENSORS]).items()
        }
    except (KeyError, TypeError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{name} is no checkpoint of this library: {error!r}") from error
    if number != FORMAT:
        raise CheckpointError(
            f"{name} has format {number!r}, and this version of npg reads {FORMAT}: update npg"
        )
    return Checkpoint(name, described, tensors, trust)
