"""comparison.json, and who may write into a directory."""

import json
import os

import pytest
from common.lock import locked
from comparison import machine, record
from comparison.execution_options import Execution

from npg.errors import ConfigurationError


def begin(directory, at_once=1, planned=("a_x_0",), backend="local", **settings):
    settings = {"steps": 100, **settings}
    execution = Execution(jobs=at_once, backend=backend)
    record.begin(directory, "agent", "command", execution, settings, planned)
    return json.loads((directory / "comparison.json").read_text())


def finish(directory):
    (directory / "runs" / "a_x_0").mkdir(parents=True)
    (directory / "runs" / "a_x_0" / "result.json").write_text("{}")


def test_what_it_says(tmp_path):
    written = begin(tmp_path)
    assert written["kind"] == "agent"
    assert written["steps"] == 100
    assert written["machine"]["cores"] == machine.here()["cores"]
    assert {"python", "torch", "stable-baselines3"} <= set(written["versions"])
    assert written["threads"] == 1


def test_runs_are_added(tmp_path):
    first = begin(tmp_path)
    second = begin(tmp_path, planned=("a_x_0", "b_x_0"))
    assert second["planned"] == ["a_x_0", "b_x_0"]
    assert second["started"] == first["started"]
    assert begin(tmp_path)["planned"] == ["a_x_0", "b_x_0"]


def test_another_budget_needs_another_directory(tmp_path):
    begin(tmp_path)
    with pytest.raises(ConfigurationError, match=r"with steps 100, this one has 200.*--output"):
        begin(tmp_path, steps=200)
    assert json.loads((tmp_path / "comparison.json").read_text())["steps"] == 100


@pytest.mark.parametrize("content", ["", '{"kind": "ag', "[]", "\x00\xff"])
def test_a_damaged_record_is_not_written_over(tmp_path, content):
    (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"cannot be read: restore it, or .*--output"):
        begin(tmp_path)
    assert (tmp_path / "comparison.json").read_text() == content


def test_a_record_of_an_older_format_says_too_little_to_go_on(tmp_path):
    (tmp_path / "comparison.json").write_text('{"kind": "agent"}')
    with pytest.raises(ConfigurationError, match=r"with steps None, this one has 100.*--output"):
        begin(tmp_path)


def test_seconds_count_only_where_every_run_had_a_core(tmp_path):
    cores = machine.here()["cores"]
    assert begin(tmp_path, at_once=cores)["wall_clock_counts"] is True
    assert begin(tmp_path, at_once=cores + 1)["wall_clock_counts"] is False
    assert begin(tmp_path, at_once=cores)["wall_clock_counts"] is True  # nothing ran meanwhile
    begin(tmp_path, at_once=cores + 1)
    finish(tmp_path)
    assert begin(tmp_path, at_once=cores)["wall_clock_counts"] is False


def test_a_call_that_makes_nothing_does_not_spoil_seconds(tmp_path):
    cores = machine.here()["cores"]
    begin(tmp_path, at_once=cores)
    finish(tmp_path)
    assert begin(tmp_path, at_once=cores + 1)["wall_clock_counts"] is True


def test_a_cluster_may_have_more_cores_than_this_machine(tmp_path):
    written = begin(tmp_path, at_once=machine.here()["cores"] + 1, backend="ray")
    assert (written["backend"], written["wall_clock_counts"]) == ("ray", True)


def test_two_comparisons_in_one_directory(tmp_path):
    """A lock of the same process counts, too: it belongs to the open file."""
    with (
        locked(tmp_path),
        pytest.raises(ConfigurationError, match=rf"process {os.getpid()}.*--output"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_a_stale_lock_is_taken_over(tmp_path):
    (tmp_path / ".lock").write_text("99999999\n")
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_directory_that_is_a_file(tmp_path):
    (tmp_path / "report").write_text("")
    with (
        pytest.raises(ConfigurationError, match=r"cannot be written to.*--output"),
        locked(tmp_path / "report"),
    ):
        pass
