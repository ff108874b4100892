"""Runs on a Ray cluster: two machines, which are two nodes of one core on this one."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from comparison import machine

from tests.scripts.comparison.fake import FINISH, is_alive, job, run, wait_for

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow  # a cluster takes longer to start than all the other tests here

ROOT = Path(__file__).parents[3]
NOTE = """
import os, sys
from pathlib import Path
directory, notes, seed = Path(sys.argv[1]), Path(sys.argv[3]), sys.argv[2]
(notes / f"pid{seed}").write_text(str(os.getpid()))
with open(notes / f"starts{seed}", "a") as starts: starts.write(f"{directory}\\n")
"""
ENDS_WITH_PARENT = (
    f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
    "from comparison.process import end_with_parent; end_with_parent()\n" + NOTE
)
SLEEP = ENDS_WITH_PARENT + "import time; time.sleep(100)\n"
CRASH = NOTE + "sys.exit('step 40 went wrong')\n"
KILL_WORKER = "import signal; os.kill(os.getppid(), signal.SIGKILL)\n"
KILL_ONE_WORKER = (
    NOTE
    + "if (notes / f'starts{seed}').read_text().count('\\n') == 1:\n    "
    + KILL_WORKER
    + "    import time; time.sleep(100)\n"
    + FINISH
)


@pytest.fixture(scope="module")
def nodes():
    """Two of one core each."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options = {"num_cpus": 1, "object_store_memory": 2**27}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    cluster.add_node(**options)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def backend(nodes):
    from comparison.backends import cluster, cluster_run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_run, "SECONDS_BETWEEN_LOOKS", 0.1)
        with cluster.connected(nodes.address, at_once=2) as joined:
            yield joined


def make(directory, *codes):
    """A run of each program, which is told where it may take notes that stay."""
    jobs = [job(directory, seed, code) for seed, code in enumerate(codes)]
    for one in jobs:
        one.command.append(str(directory))
    return jobs


def process_of(directory, seed) -> int:
    return int((directory / f"pid{seed}").read_text())


def test_runs_on_two_machines(tmp_path, backend):
    """What fails by itself is recorded, and not made again."""
    jobs = make(tmp_path, *[NOTE + FINISH] * 2, CRASH)
    outcome, text = run(jobs, backend=backend)
    assert outcome.failed == ["fake_task_2"]
    assert "3 of 3" in text
    *finished, failed = (one.result() for one in jobs)
    assert [result["status"] for result in finished] == ["finished"] * 2
    assert [result["threads"] for result in finished] == ["1"] * 2
    assert failed["error"] == "step 40 went wrong"
    assert failed["exit_code"] == 1
    for result in (*finished, failed):
        assert result["machine"]["cores"] == machine.here()["cores"]
        assert result["machine"]["at_once"] == 1  # what Ray allows on such a node
        assert result["command"] == "x"
    assert sorted(path.name for path in tmp_path.glob("runs/*/*")) == [
        *["log.txt"],
        *["result.json"] * 3,
    ]
    for seed in range(3):
        (place,) = (tmp_path / f"starts{seed}").read_text().split()
        assert not Path(place).is_relative_to(tmp_path)  # no disk is shared
        assert not Path(place).exists()


def test_a_run_that_cannot_be_started(tmp_path, backend, capfd):
    """It is not made again: its worker was not lost."""
    jobs = make(tmp_path, NOTE + FINISH, NOTE + FINISH)
    jobs[0].command.append("\0")  # which no process can be told
    outcome, _ = run(jobs, backend=backend)
    assert outcome.failed == ["fake_task_0"]
    assert jobs[0].result()["error"] == "its worker cannot make it: ValueError: embedded null byte"
    assert jobs[1].result()["status"] == "finished"
    assert "lost" not in capfd.readouterr().err


def test_a_worker_that_is_killed(tmp_path, backend, capfd):
    """Its run is made again, and the other one does not notice."""
    jobs = make(tmp_path, KILL_ONE_WORKER, NOTE + FINISH)
    outcome, _ = run(jobs, backend=backend)
    assert outcome.exit_code == 0
    starts = [(tmp_path / f"starts{seed}").read_text().count("\n") for seed in range(2)]
    assert starts == [2, 1]
    assert "fake_task_0 is made again, its worker was lost" in capfd.readouterr().err


def test_a_run_whose_workers_are_lost_again_and_again(tmp_path, backend):
    jobs = make(tmp_path, NOTE + KILL_WORKER + "import time; time.sleep(100)", FINISH)
    outcome, _ = run(jobs, backend=backend)
    assert outcome.failed == ["fake_task_0"]
    lost, finished = (one.result() for one in jobs)
    assert lost["error"].startswith("its worker was lost 3 times")
    assert finished["status"] == "finished"
    assert (tmp_path / "starts0").read_text().count("\n") == 3


@pytest.mark.usefixtures("default_interrupts")
def test_ctrl_c(tmp_path, backend):
    """Runs end on their machines, those that wait for one are given up, and all go on."""
    jobs = make(tmp_path, FINISH, SLEEP, SLEEP, SLEEP)

    def interrupt():
        wait_for(lambda: len(list(tmp_path.glob("pid*"))) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    outcome, _ = run(jobs, at_once=3, backend=backend)
    thread.join()
    assert outcome.interrupted == signal.SIGINT
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["fake_task_0"]
    for file in tmp_path.glob("pid*"):
        assert not is_alive(int(file.read_text()))
    for file in tmp_path.glob("starts*"):
        assert not Path(file.read_text().strip()).exists()
    assert run(make(tmp_path, *[FINISH] * 4), backend=backend)[0].exit_code == 0


def test_a_comparison_that_is_killed(tmp_path, nodes, backend):
    """Nothing that it started on the cluster survives it."""
    backend.workers.retire(after=0)  # it would hold the cores
    program = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "scripts")!r}]
from pathlib import Path
from comparison.backends import cluster
from tests.scripts.comparison.fake import run
from tests.scripts.comparison.test_cluster import SLEEP, make
with cluster.connected({nodes.address!r}, 1) as backend:
    run(make(Path({str(tmp_path)!r}), SLEEP), backend=backend)
"""
    comparison = subprocess.Popen([sys.executable, "-c", program])
    wait_for((tmp_path / "pid0").exists)
    wait_for(lambda: (tmp_path / "pid0").read_text())
    comparison.kill()
    comparison.wait()
    wait_for(lambda: not is_alive(process_of(tmp_path, 0)))


def test_a_machine_that_is_lost(tmp_path, nodes, backend):
    """The last test, since it takes one away."""
    wait = "import time\nwhile not (notes / 'removed').exists(): time.sleep(0.05)\n"
    jobs = make(tmp_path, *[ENDS_WITH_PARENT + wait + FINISH] * 2)
    (node,) = (node for node in nodes.list_all_nodes() if node is not nodes.head_node)

    def remove():
        wait_for(lambda: all((tmp_path / f"starts{seed}").exists() for seed in range(2)))
        runs = [process_of(tmp_path, seed) for seed in range(2)]
        nodes.remove_node(node, allow_graceful=False)
        wait_for(lambda: not all(map(is_alive, runs)))  # else it could still end in peace
        (tmp_path / "removed").touch()

    thread = threading.Thread(target=remove)
    thread.start()
    outcome, _ = run(jobs, backend=backend)
    thread.join()
    assert outcome.exit_code == 0
    starts = sorted((tmp_path / f"starts{seed}").read_text().count("\n") for seed in range(2))
    assert starts == [1, 2]
