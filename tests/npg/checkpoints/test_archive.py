"""Every byte of a checkpoint counts."""

import hashlib
import io
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npg import checkpoints
from npg.checkpoints.archive import members_of, read_archive, write_archive
from npg.errors import CheckpointError

MEMBERS = {"a.json": b'{"x": 1}', "b": bytes(range(256)) * 9, "empty": b""}


def sealed(members=None) -> bytes:
    file = io.BytesIO()
    write_archive(file, MEMBERS if members is None else members)
    return file.getvalue()


def resealed(body: bytes) -> bytes:
    """With the SHA-256 that somebody would write who changes a file on purpose."""
    return body + hashlib.sha256(body).hexdigest().encode()


def checkpoint() -> bytes:
    file = io.BytesIO()
    checkpoints.write(file, {"weight": torch.arange(6.0).reshape(2, 3).T, "steps": (1, 2)})
    return file.getvalue()


WHOLE = checkpoint()


def test_what_is_mutated_below_is_a_checkpoint():
    assert checkpoints.opened(WHOLE, "it")["steps"] == (1, 2)


@pytest.mark.parametrize("members", [MEMBERS, {}, {"one": b"x" * 3_000_000}], ids=len)
def test_round_trip(members):
    content = sealed(members)
    assert read_archive(content, "it") == members
    assert checkpoints.is_sealed(content)


def test_any_zip_program_reads_it():
    whole = sealed()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == MEMBERS
        assert archive.comment == b"sha256:" + hashlib.sha256(whole[:-64]).hexdigest().encode()


class Pipe(io.RawIOBase):
    """Gives and takes a few bytes at a time, and cannot be sought."""

    def __init__(self, content=b""):
        self.content = content

    def writable(self):
        return True

    def readable(self):
        return True

    def write(self, data):
        self.content += bytes(data[:1000])
        return min(len(data), 1000)

    def readinto(self, buffer):
        part = self.content[: min(len(buffer), 1000)]
        buffer[: len(part)] = part
        self.content = self.content[len(part) :]
        return len(part)


def test_written_and_read_where_nothing_can_be_sought():
    pipe = Pipe()
    write_archive(pipe, MEMBERS)
    assert pipe.content == sealed()
    assert checkpoints.read(Pipe(WHOLE))["steps"] == (1, 2)


def test_written_and_read_where_a_file_stands():
    file = io.BytesIO(b"before")
    file.seek(0, io.SEEK_END)
    checkpoints.write(file, {"steps": 3})
    file.seek(6)
    assert checkpoints.read(file)["steps"] == 3
    file.seek(0)
    with pytest.raises(CheckpointError):
        checkpoints.read(file)


def test_a_file_of_text_is_an_error():
    with pytest.raises(CheckpointError, match="'rb'"):
        checkpoints.read(io.StringIO("text"))


def test_every_single_changed_byte_is_an_error():
    for place in range(len(WHOLE)):
        changed = bytearray(WHOLE)
        changed[place] ^= 1
        with pytest.raises(CheckpointError, match="SHA-256"):
            checkpoints.read(io.BytesIO(changed))


CHANGES = given(
    start=st.integers(0, len(WHOLE)), length=st.integers(0, 400), put=st.binary(max_size=400)
)


@settings(max_examples=300, deadline=None)
@CHANGES
def test_every_mutation_is_an_error(start, length, put):
    changed = WHOLE[:start] + put + WHOLE[start + length :]
    if changed != WHOLE:
        with pytest.raises(CheckpointError):
            checkpoints.read(io.BytesIO(changed))


@settings(max_examples=300, deadline=None)
@CHANGES
def test_a_mutation_with_a_right_seal_is_read_or_an_error(start, length, put):
    """What is behind the seal: zip, JSON and safetensors."""
    try:
        found = checkpoints.opened(
            resealed((WHOLE[:start] + put + WHOLE[start + length :])[:-64]), "it"
        )
        for entry in found:
            found[entry]
    except CheckpointError:
        pass


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


def zipped(write, **settings) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **settings) as archive:
        archive.comment = b"sha256:" + b"0" * 64
        write(archive)
    return resealed(file.getvalue()[:-64])


def test_compressed_members_are_refused():
    """A bomb: sealed, small, and as large as its author likes when it is opened."""
    bomb = zipped(
        lambda archive: archive.writestr("values.json", b" " * 10_000_000),
        compression=zipfile.ZIP_DEFLATED,
    )
    with pytest.raises(CheckpointError, match="compressed"):
        checkpoints.opened(bomb, "it")
    with pytest.raises(CheckpointError, match="50 times"):
        members_of(bomb, "it", {zipfile.ZIP_DEFLATED}, growth=50)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused():
    """Programs do not agree which of them counts."""

    def twice(archive):
        for content in (b"{}", b"[]"):
            archive.writestr("values.json", content)

    with pytest.raises(CheckpointError, match="two members of one name"):
        checkpoints.opened(zipped(twice), "it")


def test_members_that_lie_in_one_another_are_refused():
    """A hundred names for the same million bytes."""

    def same(archive):
        archive.writestr("0", b"x" * 1_000_000)
        for number in range(1, 100):
            member = zipfile.ZipInfo(str(number))
            member.file_size = member.compress_size = 1_000_000
            member.header_offset = 0
            member.CRC = archive.filelist[0].CRC
            archive.filelist.append(member)

    with pytest.raises(CheckpointError, match=r"1 times|zip-file"):
        checkpoints.opened(zipped(same), "it")
