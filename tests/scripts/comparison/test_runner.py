"""Runs in processes: what is made, what is kept, how a comparison ends."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from comparison import machine, runner

from tests.scripts.comparison.fake import FINISH, is_alive, job, run, wait_for

ROOT = Path(__file__).parents[3]
CRASH = (
    "import sys; sys.exit(f'step {5 * 8} went wrong') if sys.argv[2] == '1' else None\n" + FINISH
)
SLEEP = """
import os, sys, time
from pathlib import Path
directory = Path(sys.argv[1])
(directory / "half").write_text("half")
(directory.parent.parent / f"pid{sys.argv[2]}").write_text(str(os.getpid()))
time.sleep(60)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP
COUNT = FINISH + "\nwith open(directory.parent.parent / 'log', 'a') as log: log.write(f'{seed} ')\n"


def results(jobs):
    return [one.result() for one in jobs]


def test_every_run_is_made_once_on_one_thread(tmp_path):
    jobs = [job(tmp_path, seed, COUNT) for seed in range(3)]
    outcome, text = run(jobs)
    assert outcome.exit_code == 0
    assert [result["threads"] for result in results(jobs)] == ["1"] * 3
    for result in results(jobs):
        assert result["machine"] == {**machine.here(), "at_once": 2}
    assert not (jobs[0].directory / "log.txt").exists()  # it had nothing to say
    more = [*jobs, job(tmp_path, 3, COUNT)]
    outcome, text = run(more)
    assert outcome.exit_code == 0
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "1", "2", "3"]
    assert "4 of 4: fake_task_3 finished, 3.5" in text
    assert "fake_task_0" not in text  # earlier ones are only counted


def test_a_crash_is_recorded_and_harms_nobody(tmp_path):
    jobs = [job(tmp_path, seed, CRASH) for seed in range(3)]
    outcome, text = run(jobs)
    assert outcome.failed == ["fake_task_1"]
    assert outcome.exit_code == 1
    first, failed, last = results(jobs)
    assert first["status"] == last["status"] == "finished"
    assert failed["status"] == "failed"
    assert failed["error"] == "step 40 went wrong"
    assert (failed["name"], failed["task"], failed["seed"]) == ("fake", "task", 1)
    assert failed["machine"] == first["machine"]
    assert "fake_task_1 failed: step 40 went wrong" in text


def test_a_failed_run_stays_until_it_is_asked_for(tmp_path):
    jobs = [job(tmp_path, 1, CRASH)]
    assert run(jobs)[0].exit_code == 1
    mended = [job(tmp_path, 1)]
    assert run(mended)[0].exit_code == 1
    assert run(mended, retry_failed=True)[0].exit_code == 0
    assert results(mended)[0]["status"] == "finished"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os; os.abort()", "the process said nothing (ended by SIGABRT)"),
        ("", "the process said nothing (exit 0)"),
    ],
)
def test_a_process_that_ends_without_a_word(tmp_path, code, error):
    jobs = [job(tmp_path, 0, code)]
    assert run(jobs)[0].exit_code == 1
    assert results(jobs)[0]["error"] == error


def test_how_far_a_crashed_run_came(tmp_path):
    code = """
import sys
open(sys.argv[1] + "/progress.json", "w").write('{"steps": 70, "seconds": 1.5, "score": 2}')
sys.exit(3)
"""
    jobs = [job(tmp_path, 0, code)]
    run(jobs)
    assert (results(jobs)[0]["steps"], results(jobs)[0]["seconds"]) == (70, 1.5)


def test_what_a_killed_process_left_is_made_again(tmp_path):
    jobs = [job(tmp_path, 0)]
    jobs[0].directory.mkdir(parents=True)
    (jobs[0].directory / "progress.json").write_text('{"steps": 7')
    (jobs[0].directory / ".result.json.77.tmp").write_text('{"status"')
    assert run(jobs)[0].exit_code == 0
    assert [path.name for path in jobs[0].directory.iterdir()] == ["result.json"]


def damage(job, content):
    job.directory.mkdir(parents=True)
    (job.directory / "result.json").write_bytes(content)
    (job.directory / "log.txt").write_text("of the earlier run")


@pytest.mark.parametrize(
    "content",
    [b"", b'{"status": "fini', b"[]", b"{}", b'{"status": "finished"}', b"\x00\xff"],
    ids=repr,
)
def test_a_damaged_result_is_kept_beside_the_new_one(tmp_path, content):
    one = job(tmp_path, 0)
    damage(one, content)
    outcome, text = run([one])
    assert outcome.exit_code == 0
    assert one.result()["status"] == "finished"
    kept = one.directory / "result.json.damaged"
    assert f"fake_task_0 is made again: its result.json was damaged; it is kept as {kept}" in text
    assert kept.read_bytes() == content
    assert {path.name for path in one.directory.iterdir()} == {"result.json", kept.name}
    assert "damaged" not in run([one])[1]  # said once
    broken = job(tmp_path, 0, CRASH.replace("'1'", "'0'"))
    (one.directory / "result.json").unlink()
    run([broken])
    run([job(tmp_path, 0)], retry_failed=True)  # what failed goes, what was damaged stays
    assert {path.name for path in one.directory.iterdir()} == {"result.json", kept.name}


@pytest.mark.usefixtures("default_interrupts")
def test_a_damaged_result_outlives_an_interruption(tmp_path):
    one = job(tmp_path, 0, SLEEP)
    damage(one, b"half")

    def interrupt():
        wait_for((tmp_path / "pid0").exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run([one])[0].exit_code == 130
    thread.join()
    (kept,) = one.directory.iterdir()
    assert (kept.name, kept.read_bytes()) == ("result.json.damaged", b"half")


@pytest.mark.parametrize("code", [SLEEP, STUBBORN], ids=["willing", "stubborn"])
@pytest.mark.usefixtures("default_interrupts")
def test_ctrl_c_ends_the_processes_and_keeps_what_is_finished(tmp_path, code, monkeypatch):
    monkeypatch.setattr(runner, "SECONDS_TO_END", 0.5)
    jobs = [job(tmp_path, 0), job(tmp_path, 1, code), job(tmp_path, 2, code), job(tmp_path, 3)]

    def interrupt():
        wait_for((tmp_path / "pid2").exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    outcome, _ = run(jobs)
    thread.join()
    assert outcome.interrupted == signal.SIGINT
    assert outcome.exit_code == 130
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["fake_task_0"]
    for seed in (1, 2):
        assert not is_alive(int((tmp_path / f"pid{seed}").read_text()))
    assert run([job(tmp_path, seed) for seed in range(4)])[0].exit_code == 0  # it goes on


def test_runs_end_with_a_comparison_that_is_killed(tmp_path):
    """The lock of the dead is free, and the run that it left half done is made again."""
    sleep = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        "from comparison.process import end_with_parent; end_with_parent()\n" + SLEEP
    )
    program = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "scripts")!r}]
from pathlib import Path
from common.lock import locked
from tests.scripts.comparison.fake import job, run
directory = Path({str(tmp_path)!r})
with locked(directory):
    run([job(directory, 0, {sleep!r})])
"""
    # -S in the fake's command hides installed packages, which `common` does not need.
    comparison = subprocess.Popen([sys.executable, "-c", program])
    wait_for((tmp_path / "pid0").exists)
    wait_for(lambda: (tmp_path / "pid0").read_text())
    comparison.kill()
    comparison.wait()
    child = int((tmp_path / "pid0").read_text())
    wait_for(lambda: not is_alive(child))
    from common.lock import locked

    with locked(tmp_path):
        assert run([job(tmp_path, 0)])[0].exit_code == 0


def test_the_table(tmp_path):
    jobs = [job(tmp_path, seed, CRASH) for seed in range(4)]
    _, text = run(jobs, terminal=True)
    row = next(line for line in reversed(text.splitlines()) if "fake" in line)
    cells = re.sub(r"\x1b\[[\d;]*m", "", row).split()
    # Means of [0, 4], [2, 4] and [3, 4], and 100 steps in 2 seconds.
    assert cells == ["fake", "task", "3", "0", "1", "0", "2.833", "–", "50"]


def test_the_table_of_running_runs(tmp_path):
    from comparison.table import LiveTable

    jobs = [job(tmp_path, seed) for seed in range(3)]
    for one, score in zip(jobs[:2], (10, 20), strict=True):
        one.directory.mkdir(parents=True)
        state = {"steps": 300, "seconds": 3.0, "score": score}
        (one.directory / "progress.json").write_text(json.dumps(state))
    table = LiveTable(jobs, "title", "return")
    table.show(set(jobs[:2]))
    cells = [next(column.cells) for column in table.drawn().columns]
    assert cells == ["fake", "task", "0", "2", "0", "1", "–", "15", "100"]


def test_a_run_that_ended_after_its_comparison_has_its_machine(tmp_path):
    """The comparison was killed when it had started the run, which wrote its result itself."""
    one = job(tmp_path, 0)
    run([one])
    result = json.loads((one.directory / "result.json").read_text())
    there = result.pop("machine")
    (one.directory / "result.json").write_text(json.dumps(result))
    (one.directory / "machine.json").write_text(json.dumps(there))
    (one.directory / "log.txt").touch()
    run([one])
    assert [path.name for path in one.directory.iterdir()] == ["result.json"]
    assert json.loads((one.directory / "result.json").read_text())["machine"] == there
