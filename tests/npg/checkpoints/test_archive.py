"""Every byte of a checkpoint counts."""

import hashlib
import io
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npg import checkpoints
from npg.checkpoints.archive import read_archive, write_archive
from npg.errors import CheckpointError

MEMBERS = {"a.json": b'{"x": 1}', "b": bytes(range(256)) * 9, "empty": b""}


def sealed(members=None) -> bytes:
    file = io.BytesIO()
    write_archive(file, MEMBERS if members is None else members)
    return file.getvalue()


WHOLE = sealed()


@pytest.mark.parametrize("members", [MEMBERS, {}, {"one": b"x" * 3_000_000}], ids=len)
def test_round_trip(members):
    content = sealed(members)
    assert read_archive(io.BytesIO(content), "it") == members
    assert checkpoints.is_sealed(io.BytesIO(content))


def test_any_zip_program_reads_it():
    with zipfile.ZipFile(io.BytesIO(WHOLE)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == MEMBERS
        assert archive.comment == b"sha256:" + hashlib.sha256(WHOLE[:-64]).hexdigest().encode()


def test_written_where_nothing_can_be_sought(tmp_path):
    class Pipe(io.RawIOBase):
        def __init__(self):
            self.content = b""

        def writable(self):
            return True

        def write(self, data):
            self.content += bytes(data)
            return len(data)

    pipe = Pipe()
    write_archive(pipe, MEMBERS)
    assert pipe.content == WHOLE


def test_every_single_changed_byte_is_an_error():
    for place in range(len(WHOLE)):
        changed = bytearray(WHOLE)
        changed[place] ^= 1
        with pytest.raises(CheckpointError):
            checkpoints.read(io.BytesIO(changed))


@settings(max_examples=300, deadline=None)
@given(start=st.integers(0, len(WHOLE)), length=st.integers(0, 400), put=st.binary(max_size=400))
def test_every_mutation_is_an_error(start, length, put):
    changed = WHOLE[:start] + put + WHOLE[start + length :]
    if changed != WHOLE:
        with pytest.raises(CheckpointError):
            checkpoints.read(io.BytesIO(changed))


def test_a_file_is_named(tmp_path):
    path = tmp_path / "run.zip"
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*run\.zip"):
        checkpoints.read(path)
    with open(path, "wb") as file:
        checkpoints.write(file, {"weight": torch.ones(3)})
    assert checkpoints.read(path)["weight"].tolist() == [1, 1, 1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"run\.zip is damaged or truncated: its SHA-256"):
        checkpoints.read(path)


def test_compressed_members_are_refused():
    """A bomb: sealed, small, and as large as its author likes when it is opened."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = b"sha256:" + b"0" * 64
        archive.writestr("values.json", b" " * 10_000_000)
    body = file.getvalue()[:-64]
    whole = body + hashlib.sha256(body).hexdigest().encode()
    with pytest.raises(CheckpointError, match="compressed"):
        checkpoints.read(io.BytesIO(whole))
