"""progress.csv: a row for each time that something is logged."""

import csv
import io
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter, filter_excluded_keys

from common.files import replacing, tolerated


class ProgressFile(KVWriter):
    """A table in a CSV file, which is whole whenever somebody looks.

    A row is appended; one with new names writes the file anew, under a temporary name first. Rows
    that cannot be written, to a full disk for instance, wait for the next one.

    Args:
        path: Of the file.
        steps: Name of the column that counts the steps.
        resumed_at: Steps of the checkpoint that training goes on from, whose later rows are
            dropped, since they come again; None begins a new file.
    """

    def __init__(self, path: Path, steps: str, resumed_at: int | None) -> None:
        self.path = path
        self._names: list[str] = []
        self._waiting: list[dict[str, str]] = []
        rows = [] if resumed_at is None else _rows(path, steps, resumed_at)
        if rows:
            self._names = list(rows[0])
        with replacing(path) as temporary:
            temporary.write_text(_text(self._names, rows, header=True))
        self._open()

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Adds a row.

        Args:
            key_values: Names and values; None is an empty place.
            key_excluded: By name, the formats that a value is not meant for.
            step: Is among the values, too.
        """
        values = filter_excluded_keys(key_values, key_excluded, "csv")
        row = {name: "" if value is None else str(value) for name, value in values.items()}
        self._waiting.append(row)
        new = [name for name in row if name not in self._names]
        self._names += new
        with tolerated(self.path):
            if self._displaced():
                raise OSError("it was removed, or another run's is there")
            if new or self._torn:
                self.renew()
            else:
                self._append()

    def renew(self) -> None:
        """Writes the file anew from what there is of it, also if it was removed meanwhile."""
        self._torn = True
        self._file.seek(0)
        rows = _parsed(self._file.read(self._whole).decode())
        with replacing(self.path) as temporary:
            temporary.write_text(_text(self._names, [*rows, *self._waiting], header=True))
        self._file.close()
        self._open()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _displaced(self) -> bool:
        """Whether the path leads here no more: another run may have taken the directory's name.

        Rows then wait until :meth:`renew` is called by whoever knows that the directory is ours.
        """
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return True
        return not os.path.samestat(there, os.fstat(self._file.fileno()))

    def _open(self) -> None:
        # Without a buffer, which would keep what could not be written, and fail again when closed.
        self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115 - until this is closed
        self._whole = self._file.seek(0, io.SEEK_END)
        self._waiting = []
        self._torn = False

    def _append(self) -> None:
        text = _text(self._names, self._waiting).encode()
        left = memoryview(text)
        try:
            while left:  # a disk that is almost full takes a part
                left = left[self._file.write(left) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(self._whole)
            self._file.seek(self._whole)
            raise
        self._whole += len(text)
        self._waiting = []


def _text(names: Sequence[str], rows: Sequence[dict[str, str]], header: bool = False) -> str:
    written = io.StringIO()
    table = csv.DictWriter(written, names, lineterminator="\n")
    if header and names:
        table.writeheader()
    table.writerows(rows)
    return written.getvalue()


def _parsed(text: str) -> list[dict[str, str]]:
    """Rows that are whole: a process that was killed may have left a part of one."""
    whole = text[: text.rfind("\n") + 1]
    table = csv.DictReader(io.StringIO(whole), restkey="")
    return [row for row in table if "" not in row and None not in row.values()]


def _rows(path: Path, steps: str, until: int) -> list[dict[str, str]]:
    rows = _parsed(path.read_text()) if path.is_file() else []
    return [row for row in rows if row.get(steps, "").isdecimal() and int(row[steps]) <= until]
