"""Peaks of memory, with pages from the system itself: malloc keeps some of what is freed."""

import mmap

import pytest
from common import memory
from common.memory import PeakMemory

MB = 2**20


def pages(megabytes):
    taken = mmap.mmap(-1, megabytes * MB)
    for _ in range(megabytes):
        taken.write(bytes(MB))
    return taken


def take(megabytes):
    pages(megabytes).close()


def test_the_most_that_is_taken_at_any_time_from_now_on():
    take(200)
    measured = PeakMemory()
    kept = pages(10)
    take(60)
    assert measured.megabytes == pytest.approx(70, abs=8)
    take(20)
    assert measured.megabytes == pytest.approx(70, abs=8)
    kept.close()


def test_what_is_taken_in_a_pause_does_not_count():
    measured = PeakMemory()
    take(20)
    with measured.paused():
        take(100)
    assert measured.megabytes == pytest.approx(20, abs=8)
    with pytest.raises(ZeroDivisionError), measured.paused():
        take(100 // 0)
    take(40)
    assert measured.megabytes == pytest.approx(40, abs=8)


def test_where_the_system_keeps_its_peaks_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "clear_refs")
    assert PeakMemory().megabytes is None
