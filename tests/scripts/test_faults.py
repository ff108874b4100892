"""Faults within train.py, in this process; all of them, in processes of their own, take minutes."""

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from faulting import checks, environments, soak, table
from faulting.process import Fault
from faulting.trained import run_in
from stable_baselines3.common.callbacks import BaseCallback
from train import main
from training import callbacks
from training.watchdog import Watchdog

from agents import TRPO

ROOT = Path(__file__).parents[2]
TINY = "--n-steps 64 --num-envs 2 --critic gauss-newton --eval-episodes 2 --no-progress-bar"


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains in an environment that is faulty once; returns the exit code and the directory."""
    monkeypatch.setenv(environments.MARK, str(tmp_path / "mark"))
    monkeypatch.setattr(environments.Faulty, "steps", 0)
    monkeypatch.setattr(environments.Faulty, "at", 300)

    def run(kind="Sound", words="", steps=512):
        env = f"faulting.environments:{kind}-v0"
        words = f"trpo --env {env} --track-dir {tmp_path} --total-timesteps {steps} {words}"
        code = main(f"{words} {TINY}".split())
        return code, run_in(tmp_path)

    return run


def resume(run, steps=512):
    return main(f"trpo --resume {run} --total-timesteps {steps}".split())


class During(BaseCallback):
    """Does something before the rollout that begins at some step."""

    def __init__(self, things):
        super().__init__()
        self.things = things

    def _on_rollout_start(self):
        self.things.pop(self.model.num_timesteps, lambda: None)()

    def _on_step(self):
        return True


@pytest.fixture
def during(monkeypatch):
    """Lets something happen, once, between an update and the next rollout."""
    real, things = callbacks.Callbacks, {}
    monkeypatch.setattr(callbacks, "Callbacks", lambda beside: real([During(things), *beside]))
    return things.__setitem__


@pytest.fixture
def full_disk(monkeypatch):
    """Lets every file with such a name fail, as a full disk does, while ``full.on``."""
    real = os.replace

    class Full:
        on = True

    def replace(source, target):
        if Full.on and Path(target).name in Full.names:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    return Full


# ------------------------------------------------------------------------------------ environments


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        ("NaNReward", "--normalize-obs --normalize-reward", "non-finite reward"),
        ("NaNObservation", "", "observation of environment"),
        ("ShorterObservation", "", "has shape (1,) instead of (4,)"),
    ],
)
def test_what_an_environment_spoils_is_named_and_the_run_goes_on(train, kind, words, said, capsys):
    code, run = train(kind, words)
    error = capsys.readouterr().err
    assert code == 1
    assert said in error
    assert re.search(rf"{run / 'last_model.zip'}; continue with: \S*python", error)
    assert f"--resume {run}" in error
    assert "Traceback" not in error
    assert checks.after_fault(run) == []
    before = checks.progress(run)
    assert resume(run) == 0
    assert "episodes begin anew" in capsys.readouterr().err  # not where they were spoiled
    assert checks.goes_on(before, run, 512) == []


def test_an_exception_keeps_its_traceback_and_says_how_to_go_on(train, tmp_path):
    with pytest.raises(ConnectionError, match="does not answer") as caught:
        train("Raises")
    where, how = caught.value.__notes__
    run = run_in(tmp_path)
    assert "environment index" in where
    assert "--resume goes on from before this rollout, after 256 steps" in how
    assert f"--resume {run}" in how
    assert resume(run) == 0


def test_an_error_before_anything_was_done_leaves_the_checkpoint(train, monkeypatch):
    """The one of the last step holds the environments, too."""
    _, run = train("Sound")
    saved = (run / "last_model.zip").read_bytes()
    monkeypatch.setattr(TRPO, "collect_rollouts", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        resume(run, 1024)
    assert "last_model.zip, of step 512, is whole; continue with" in caught.value.__notes__[-1]
    assert (run / "last_model.zip").read_bytes() == saved


def test_a_hanging_environment_ends_the_process_and_the_run_goes_on(train, monkeypatch, capfd):
    ended = threading.Event()
    codes = []

    def end(code):
        codes.append(code)
        ended.set()

    monkeypatch.setattr("train.Watchdog", partial(Watchdog, end=end))
    monkeypatch.setattr(environments.time, "sleep", lambda seconds: ended.wait(60))
    _, run = train("Hangs", "--env-timeout 1 --verbose 1", steps=320)
    assert codes == [1]
    error = capfd.readouterr().err
    assert "(faulting.environments:Hangs-v0) has not returned from step for 1 s" in error
    assert f"this rollout, after 256 steps: {run / 'last_model.zip'}; continue with" in error
    assert "in fault" in (run / "stacks.txt").read_text()


# -------------------------------------------------------------------------------------- the disk


def test_a_disk_that_is_full_for_a_while_loses_nothing(
    train, during, full_disk, monkeypatch, capsys
):
    full_disk.names = {"last_model.zip", "best_model.zip", "evaluations.npz", "progress.csv"}
    full_disk.names |= {"learning_curve.png"}
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN_PLOTS", 0.0)
    during(384, lambda: setattr(full_disk, "on", False))
    full_disk.on = False
    during(128, lambda: setattr(full_disk, "on", True))
    code, run = train(words="--save-freq 128 --eval-freq 128")
    assert code == 0
    said = "last_model.zip cannot be written (No space left on device): the training goes on"
    assert said in capsys.readouterr().err
    assert checks.after_fault(run) == []
    assert [s for s in checks.progress(run) if s % 128 == 0][-1] == 512
    assert sorted({*checks.evaluations(run)}) == [128, 256, 384, 512]


def test_a_full_disk_names_the_file_and_keeps_the_last_checkpoint(train, during, full_disk, capsys):
    full_disk.names = {"last_model.zip"}
    full_disk.on = False
    during(256, lambda: setattr(full_disk, "on", True))
    code, run = train(words="--save-freq 128")
    error = capsys.readouterr().err
    assert code == 1
    assert "the last checkpoint cannot be written (No space left on device)" in error
    assert f"{run / 'last_model.zip'}, of step 128, is whole; continue with" in error
    assert checks.after_fault(run) == []
    full_disk.on = False
    assert resume(run) == 0
    assert checks.last_steps(run) == 512


def test_a_best_checkpoint_that_could_not_be_written_does_not_count(train, full_disk):
    full_disk.names = {"best_model.zip"}
    code, run = train(words="--eval-freq 128 --stop-at 1e9")
    assert code == 0
    assert not (run / "best_model.zip").exists()
    full_disk.on = False
    assert resume(run, 640) == 0  # whatever the evaluation says, it is the best there is
    assert TRPO.load(run / "best_model.zip").num_timesteps > 512


def test_what_is_removed_once_more_is_written_once_more(train, during, tmp_path):
    """Somebody was not done with removing when the directory was made anew."""
    during(256, lambda: shutil.rmtree(run_in(tmp_path)))
    during(384, lambda: (run_in(tmp_path) / "config.yml").unlink())
    code, run = train()
    assert code == 0
    assert checks.after_fault(run) == []
    assert {128, 256, 384, 512} <= set(checks.progress(run))


@pytest.mark.parametrize("by", ["nobody", "another run"])
def test_a_removed_directory(train, during, tmp_path, by, capsys):
    def remove():
        run = run_in(tmp_path)
        shutil.rmtree(run)
        if by == "another run":
            run.mkdir()
            (run / ".lock").touch()

    during(384, remove)
    words = "--save-freq 128 --eval-freq 128"
    if by == "another run":
        code, _ = train(words=words)
        assert code == 1
        assert "another run has taken its place" in capsys.readouterr().err
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]
        return
    code, run = train(words=words)
    assert code == 0
    assert "was removed: it is made anew" in capsys.readouterr().err
    assert checks.after_fault(run) == []
    assert set(checks.progress(run)) >= {128, 256, 384, 512}
    assert sorted({*checks.evaluations(run)}) == [128, 256, 384, 512]
    assert list(run.glob("events.out.tfevents*"))
    assert resume(run, 640) == 0


# ------------------------------------------------------------------------------------- the command


def test_checks_find_what_is_wrong(finished_run, tmp_path):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    assert checks.after_fault(run) == []
    (run / ".last_model.zip.1.tmp").touch()
    (run / "last_model.zip").write_bytes((run / "last_model.zip").read_bytes()[:-1])
    (run / "evaluations.npz").write_bytes(b"PK")
    with open(run / "progress.csv", "a") as file:
        file.write("1,2")
    wrong = "; ".join(checks.after_fault(run))
    for found in ("last_model.zip cannot be read", "tmp was left behind", "progress.csv is torn"):
        assert found in wrong
    assert "allow_pickle" in wrong  # what NumPy says of what is no archive


def test_a_row_says_what_did_not_hold(tmp_path):
    befallen = type("Run", (), {"seen": ["exit code 0"], "wrong": ["rows are lost"]})
    row = table._row(Fault("this", "that", lambda place: befallen), tmp_path / "0")
    assert not row.held
    assert row.seen == "exit code 0; rows are lost"

    def cannot(place):
        raise TimeoutError("the run did not get so far")

    row = table._row(Fault("this", "that", cannot), tmp_path / "1")
    assert not row.held
    assert "did not get so far" in row.seen


def test_slope_of_memory():
    steps = np.arange(0, 1_000_001, 50_000)
    megabytes = np.where(steps < 200_000, 1e-3 * steps, 200 + 0.7 * steps / 100_000)
    samples = list(zip(steps.tolist(), megabytes.tolist(), strict=True))
    assert soak.slope(samples, 1_000_000) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="take more --steps"):
        soak.slope(samples[:5], 1_000_000)


@pytest.mark.slow
def test_every_fault():
    command = [sys.executable, str(ROOT / "scripts" / "faults.py"), "table"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
