"""progress.csv, on a disk that fills up."""

import csv
import errno
import io
import warnings

import pytest
from common.files import tolerated
from common.progress_file import ProgressFile

STEPS = "time/total_timesteps"


class Nearly:
    """A file on a disk that takes so many bytes more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self.file.write(data[: self.room])
        self.room -= taken
        return taken

    def __getattr__(self, name):
        return getattr(self.file, name)


def log(file, steps, **values):
    row = {STEPS: steps, **values}
    file.write(row, dict.fromkeys(row, ()))


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "progress.csv"


def test_rows_and_new_names(path):
    file = ProgressFile(path, STEPS, None)
    log(file, 1, loss=0.5)
    log(file, 2, name='a "b", c')
    log(file, 3, loss=None)
    file.write({STEPS: 4, "hidden": 1}, {STEPS: (), "hidden": ("csv",)})
    file.close()
    assert read(path) == [
        {STEPS: "1", "loss": "0.5", "name": ""},
        {STEPS: "2", "loss": "", "name": 'a "b", c'},
        {STEPS: "3", "loss": "", "name": ""},
        {STEPS: "4", "loss": "", "name": ""},
    ]


@pytest.mark.parametrize("room", [0, 1, 3])
def test_rows_wait_while_the_disk_is_full(path, room):
    file = ProgressFile(path, STEPS, None)
    log(file, 1, loss=0.5)
    whole = path.read_bytes()
    file._file = Nearly(file._file, room)
    with pytest.warns(UserWarning, match="progress.csv cannot be written .No space left on device"):
        log(file, 2, loss=0.25)
    assert path.read_bytes() == whole
    file._file.room = 1000
    log(file, 3, loss=0.125)
    assert [row["loss"] for row in read(path)] == ["0.5", "0.25", "0.125"]


def test_new_names_wait_too_and_leave_nothing_behind(path, monkeypatch):
    file = ProgressFile(path, STEPS, None)
    log(file, 1)
    whole = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", full)
        with pytest.warns(UserWarning, match="cannot be written"):
            log(file, 2, loss=0.25)
        with pytest.warns(UserWarning, match="cannot be written"):
            log(file, 3, loss=0.125)  # no new name, and still the file must be written anew
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]
    log(file, 4)
    assert [(row[STEPS], row["loss"]) for row in read(path)] == [
        ("1", ""),
        ("2", "0.25"),
        ("3", "0.125"),
        ("4", ""),
    ]


def test_a_removed_file_is_written_again_from_the_one_that_is_open(path):
    file = ProgressFile(path, STEPS, None)
    log(file, 1, loss=0.5)
    path.unlink()
    log(file, 2, loss=0.25)
    file.renew()
    log(file, 3, loss=0.125)
    assert [row["loss"] for row in read(path)] == ["0.5", "0.25", "0.125"]


def test_a_resumed_file_keeps_whole_rows_until_the_checkpoint(path):
    path.write_text(f'{STEPS},name\n1,"a,b"\n2\n3,c\n4,d\n5,')
    file = ProgressFile(path, STEPS, 3)
    assert path.read_text() == f'{STEPS},name\n1,"a,b"\n3,c\n'
    log(file, 4, name="e")
    assert [row["name"] for row in read(path)] == ["a,b", "c", "e"]


def test_only_what_the_system_refuses_is_tolerated(path):
    with pytest.raises(ZeroDivisionError), warnings.catch_warnings(), tolerated(path):
        raise ZeroDivisionError
    with pytest.warns(UserWarning, match="goes on, and tries again"), tolerated(path):
        io.open(path.parent)  # noqa: SIM115, UP020 - a directory


def test_nothing_is_written_where_another_run_has_taken_the_name(path):
    directory, gone = path.parent / "run", path.parent / "gone"
    directory.mkdir()
    file = ProgressFile(directory / "progress.csv", STEPS, None)
    log(file, 1, loss=0.5)
    directory.rename(gone)
    directory.mkdir()
    for there in (False, True):
        if there:
            file.path.write_text("another's")
        with pytest.warns(UserWarning, match="another run's"):
            log(file, 2, loss=0.4, **{f"new {there}": 1})
    assert file.path.read_text() == "another's"
    file.path.unlink()
    file.renew()  # the directory is ours after all
    assert [row[STEPS] for row in read(file.path)] == ["1", "2", "2"]
