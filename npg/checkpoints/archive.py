"""The file of a checkpoint: a zip archive whose comment is the SHA-256 of every byte before it."""

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping
from typing import IO

from npg.errors import CheckpointError

_MARK = b"sha256:"
_DIGITS = hashlib.sha256().digest_size * 2
_BLOCK = 1 << 20  # bytes hashed at a time


def write_archive(file: IO[bytes], members: Mapping[str, bytes]) -> None:
    """Writes members one after another, uncompressed, and seals the file.

    Args:
        file: Open for writing; it need not be seekable.
        members: Contents by name.
    """
    sealing = _Sealing(file)
    with zipfile.ZipFile(sealing, "w") as archive:
        archive.comment = _MARK + b"0" * _DIGITS
        for name, content in members.items():
            member = zipfile.ZipInfo(name)  # without the time: the same content is the same file
            member.external_attr = 0o644 << 16
            archive.writestr(member, content)
    sealing.seal()


def is_sealed(file: IO[bytes]) -> bool:
    """Whether a file ends as :func:`write_archive` ends one; its position stays where it was."""
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - len(_MARK) - _DIGITS, 0))
    ends_so = file.read(len(_MARK)) == _MARK
    file.seek(position)
    return ends_so


def read_archive(file: IO[bytes], name: str) -> dict[str, bytes]:
    """Reads all members of a sealed file, if every byte of it is as it was written.

    Args:
        file: Open for reading, seekable.
        name: What errors call it.

    Returns:
        Contents by name.

    Raises:
        CheckpointError: If the file is truncated, or a byte was changed.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    digest = hashlib.sha256()
    left = size - _DIGITS
    while left > 0:
        block = file.read(min(left, _BLOCK))
        if not block:
            break
        digest.update(block)
        left -= len(block)
    if file.read() != digest.hexdigest().encode():
        raise CheckpointError(
            f"{name} is damaged or truncated: its SHA-256 is not the one that was written with it"
        )
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            # What was sealed here is not compressed, and so cannot be larger than the file.
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise CheckpointError(f"{name} is no checkpoint: a member of it is compressed")
            return {member: archive.read(member) for member in archive.namelist()}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{name} is no checkpoint: {error}") from error


class _Sealing(io.RawIOBase):
    """Hands on what is written, but for the last characters, whose place the digest takes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.held_back = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Hashes and writes everything that cannot be the end."""
        if len(data) >= _DIGITS:
            self._emit(self.held_back)
            self._emit(memoryview(data)[:-_DIGITS])
            self.held_back = bytes(data[-_DIGITS:])
        else:
            both = self.held_back + bytes(data)
            self._emit(both[:-_DIGITS])
            self.held_back = both[-_DIGITS:]
        return len(data)

    def seal(self) -> None:
        """Writes the digest in place of what was held back."""
        self.file.write(self.digest.hexdigest().encode())
        self.file.flush()

    def _emit(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self.file.write(data)
