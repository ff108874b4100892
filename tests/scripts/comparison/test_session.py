"""A comparison from its runs to what is said at its end."""

import os
import signal
import sys
import threading
from contextlib import contextmanager

import comparison
import pytest
from common.lock import locked
from comparison import record, session
from comparison.backends.local import Local
from comparison.execution_options import Execution

from npg.errors import ConfigurationError
from tests.scripts.comparison.fake import FINISH, job, wait_for

FAIL = "import sys; sys.exit('broken')"


@pytest.fixture(autouse=True)
def pages(monkeypatch):
    """Directories of the pages that would have been written."""
    written = []
    monkeypatch.setattr(session, "write_page", lambda path: written.append(path) or path)
    return written


def compare(directory, *codes):
    jobs = [job(directory, seed, code) for seed, code in enumerate(codes)]
    return session.compare(jobs, directory, "agent", Execution(), {"steps": 100}, "return")


def test_what_is_said_at_the_end(tmp_path, pages, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare.py", "agents", "--envs", "CartPole-v1"])
    assert compare(tmp_path, FINISH, FAIL) == 1
    text = capsys.readouterr().out
    assert "failed          fake_task_1" in text
    assert "compare.py agents --envs CartPole-v1 --retry-failed" in text
    assert "continue with" not in text
    assert pages == [tmp_path]


@pytest.mark.usefixtures("default_interrupts")
def test_how_to_go_on_after_ctrl_c(tmp_path, pages, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare.py", "agents", "--envs", "CartPole-v1"])

    def interrupt():
        wait_for((tmp_path / "runs" / "fake_task_1").exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert compare(tmp_path, FINISH, "import time; time.sleep(60)") == 130
    thread.join()
    text = capsys.readouterr().out
    assert text.rstrip().endswith("compare.py agents --envs CartPole-v1")
    assert "continue with" in text
    assert pages == [tmp_path]  # of what is finished
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["fake_task_0"]


def test_a_cluster_starts_only_where_a_comparison_may_begin(tmp_path, monkeypatch):
    """And it is left before the page is drawn."""
    told = []

    @contextmanager
    def opened(execution):
        told.append("starts")
        yield Local(1)
        told.append("ends")

    monkeypatch.setattr(session.backends, "opened", opened)
    with locked(tmp_path), pytest.raises(ConfigurationError, match="another comparison"):
        compare(tmp_path, FINISH)
    record.begin(tmp_path, "agent", "command", Execution(), {"steps": 200}, [])
    with pytest.raises(ConfigurationError, match="with steps 200"):
        compare(tmp_path, FINISH)
    assert not told
    monkeypatch.setattr(session, "write_page", lambda path: told.append("page") or path)
    assert compare(tmp_path / "new", FINISH) == 0
    assert told == ["starts", "ends", "page"]


def test_a_package_of_the_page_is_missing(tmp_path, monkeypatch):
    """That is said before hours of training, not after."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "comparison.page", raising=False)
    monkeypatch.delattr(comparison, "page", raising=False)
    with pytest.raises(ConfigurationError, match=r"jinja2.*pip install \.\[compare\]"):
        compare(tmp_path / "report", FINISH)
    assert not (tmp_path / "report").exists()
