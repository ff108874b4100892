"""The file of a checkpoint: a zip archive whose comment is the SHA-256 of every byte before it."""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from typing import IO

from npg.errors import CheckpointError

_MARK = b"sha256:"
_DIGITS = hashlib.sha256().digest_size * 2


def write_archive(file: IO[bytes], members: Mapping[str, bytes]) -> None:
    """Writes members one after another, uncompressed, and seals the file.

    Args:
        file: Open for writing, which begins at its position; it need not be seekable.
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


def content_of(file: IO[bytes], name: str) -> bytes:
    """What a file holds from its position to its end.

    Args:
        file: Open for reading; it need not be seekable.
        name: What errors call it.

    Returns:
        The bytes.

    Raises:
        CheckpointError: If it gives something else.
    """
    content = file.read()
    if not isinstance(content, bytes):
        raise CheckpointError(
            f"{name} gives {type(content).__name__}, not bytes: open it for reading with 'rb'"
        )
    return content


def is_sealed(content: bytes) -> bool:
    """Whether a file ends as :func:`write_archive` ends one."""
    return content[:-_DIGITS].endswith(_MARK)


def read_archive(content: bytes, name: str) -> dict[str, bytes]:
    """Reads all members of a sealed file, if every byte of it is as it was written.

    Args:
        content: The file's.
        name: What errors call it.

    Returns:
        Contents by name.

    Raises:
        CheckpointError: If the file is truncated, or a byte was changed.
    """
    body = memoryview(content)[:-_DIGITS]
    if content[-_DIGITS:] != hashlib.sha256(body).hexdigest().encode():
        raise CheckpointError(
            f"{name} is damaged or truncated: its SHA-256 is not the one that was written with it"
        )
    return members_of(content, name, {zipfile.ZIP_STORED}, growth=1)


def members_of(content: bytes, name: str, kinds: set[int], growth: float) -> dict[str, bytes]:
    """Reads all members of a zip archive, which may be anybody's.

    Args:
        content: The file's.
        name: What errors call it.
        kinds: Of compression that are read.
        growth: How many times larger than the file all members may be together.

    Returns:
        Contents by name.

    Raises:
        CheckpointError: If it is no archive, damaged, compressed otherwise, has two members of one
            name, or would be larger than that.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            listed = archive.infolist()
            if any(member.compress_type not in kinds for member in listed):
                raise CheckpointError(f"{name} is no checkpoint: a member of it is compressed")
            if len({member.filename for member in listed}) < len(listed):
                raise CheckpointError(f"{name} is no checkpoint: it has two members of one name")
            if sum(member.file_size for member in listed) > growth * len(content):
                raise CheckpointError(
                    f"{name} is no checkpoint: opened, it would be more than {growth:g} times as "
                    "large as it is"
                )
            return {member.filename: archive.read(member) for member in listed}
    except CheckpointError:
        raise
    except Exception as error:  # zipfile's own, zlib's, struct's: whatever damaged bytes lead to
        raise CheckpointError(
            f"{name} wasn't a zip-file, or is truncated or damaged ({error}): a checkpoint is the "
            "zip file that save() wrote"
        ) from error


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
        self._hand_on(self.digest.hexdigest().encode())
        self.file.flush()

    def _emit(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self._hand_on(data)

    def _hand_on(self, data: bytes | memoryview) -> None:
        """Writes all of it; a pipe, or an unbuffered file, may take only a part at a time."""
        left = memoryview(data)
        while left:
            taken = self.file.write(left)
            left = left[len(left) if taken is None else taken :]
