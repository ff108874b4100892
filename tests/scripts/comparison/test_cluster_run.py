"""A run on a cluster whose worker fails or is lost, told by Ray's own errors, without a cluster."""

from types import SimpleNamespace

import pytest

from tests.scripts.comparison.fake import job

ray = pytest.importorskip("ray")

from comparison.backends import cluster_run  # noqa: E402 - without Ray there is none
from comparison.backends.worker import Seen  # noqa: E402
from comparison.backends.workers import Workers  # noqa: E402

TRACEBACK = """Traceback (most recent call last):
  File "worker.py", line 39, in start
    path.write_bytes(content)
OSError: [Errno 28] No space left on device
"""
FINISHED = Seen(0, {}, "node", {"cpu": "A", "cores": 1})
LOST = ray.exceptions.ActorDiedError()


@pytest.fixture
def cluster(monkeypatch):
    """Workers whose answers are told in advance, each when a run is started; who was ended."""
    state = SimpleNamespace(answers=[], started=[], ended=[], workers=Workers(2))

    def new():
        worker = SimpleNamespace()
        worker.start = SimpleNamespace(
            remote=lambda order: (state.started.append(worker), state.answers.pop(0))[1]
        )
        return worker

    def get(answer):
        if isinstance(answer, Exception):
            raise answer
        return answer

    state.workers._new = SimpleNamespace(remote=new)
    monkeypatch.setattr(cluster_run, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(ray, "wait", lambda answers, timeout: (answers, []))
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", state.ended.append)
    monkeypatch.setattr(ray, "nodes", list)
    return state


def begin(cluster, directory, seed=0):
    one = job(directory, seed)
    one.directory.mkdir(parents=True)
    return cluster_run.ClusterRun(one, cluster.workers)


@pytest.mark.parametrize("dual", [True, False], ids=["as its cause", "alone"])
def test_what_a_worker_raises_is_told_and_not_tried_again(tmp_path, cluster, capsys, dual):
    error = ray.exceptions.RayTaskError("start", TRACEBACK, OSError(28, "No space"), ip="10.0.0.1")
    cluster.answers = [error.as_instanceof_cause() if dual else error, FINISHED]
    ending = begin(cluster, tmp_path).ending()
    assert ending.exit_code is None
    assert ending.lost == ("its worker cannot make it: OSError: [Errno 28] No space left on device")
    assert cluster.ended == cluster.started  # what it was in the middle of ends with it
    assert len(cluster.started) == 1
    assert not capsys.readouterr().err


def test_a_connection_that_a_worker_lost_is_not_that_to_the_cluster(tmp_path, cluster):
    error = ray.exceptions.RayTaskError("start", "ConnectionError: no", ConnectionError(), ip="x")
    cluster.answers = [error.as_instanceof_cause()]
    assert begin(cluster, tmp_path).ending().lost.endswith("ConnectionError: no")


def test_idle_workers_cost_no_try_where_another_was_lost(tmp_path, cluster):
    """Their machine may be lost with it."""
    cluster.answers = [FINISHED, LOST, FINISHED]
    first, second = begin(cluster, tmp_path), begin(cluster, tmp_path, 1)
    assert first.ending().exit_code == 0
    idle, lost = cluster.started
    assert second.ending() is None
    assert cluster.started[2] not in (idle, lost)
    assert cluster.ended == [idle, lost]
    assert second.ending().exit_code == 0
