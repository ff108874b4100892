"""One run of an optimizer in this process: its figures against classify.py's, and its ends."""

import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from classification import data, loop
from common.failures import Failure
from comparison import optimizer_recorder, optimizer_run
from comparison.optimizer_options import OptimizerRun

from tests.scripts.classified import classify, rows_of, saved


def options(tmp_path, **changes):
    given = {"optimizer": "adam", "data": "digits", "model": "linear", "output": tmp_path / "run"}
    return OptimizerRun(**{**given, "rate": 0.01, "epochs": 2, **changes})


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def result_of(directory):
    text = (directory / "result.json").read_text()
    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("finished")
    assert optimizer_run.run(options(tmp_path, seed=3)) == 0
    return tmp_path / "run"


def test_the_figures_are_those_of_classify(finished, tmp_path):
    words = ("--model", "linear", "--optimizer", "adam", "--lr", 0.01, "--epochs", 2, "--seed", 3)
    directory = classify(tmp_path, *words)
    rows, result = rows_of(directory), result_of(finished)
    evaluations = {steps: (loss, merit) for steps, _, loss, merit in result["evaluations"]}
    for row in rows:
        expected = row["test/loss"], row["test/accuracy"]
        assert evaluations[row["time/step"]] == pytest.approx(expected)
    assert result["final"] == [pytest.approx(rows[-1]["test/accuracy"])]
    losses = {steps: loss for steps, _, loss in result["curve"]}  # so few that each is a point
    assert list(losses) == list(range(1, 23))
    for row, steps in zip(rows, (range(1, 12), range(12, 23)), strict=True):
        assert np.mean([losses[step] for step in steps]) == pytest.approx(row["train/loss"])
    weight, bias = (value.double().numpy() for value in saved(directory)["model"].values())
    train = data.load("digits", None, 3, torch.device("cpu")).train
    logits = train.inputs.flatten(1).double().numpy() @ weight.T + bias
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss = -log_p[np.arange(len(train)), train.labels].mean()
    assert result["final_loss"] == pytest.approx(loss, rel=1e-5)


def test_what_else_a_result_says(finished):
    result = result_of(finished)
    about = {name: result[name] for name in ("kind", "name", "task", "seed", "rate")}
    assert about == {
        "kind": "optimizer",
        "name": "adam",
        "task": "digits-linear",
        "seed": 3,
        "rate": 0.01,
    }
    assert (result["status"], result["error"], result["threads"]) == ("finished", "", 1)
    assert (result["metric"], result["larger_is_better"]) == ("accuracy", True)
    assert result["steps"] == 22
    clocks = [seconds for _, seconds, _ in result["curve"]]
    assert clocks == sorted(clocks)
    assert clocks[-1] == result["seconds"]
    assert result["step_seconds"] == pytest.approx(np.median(np.diff(clocks, prepend=0)))
    assert [point[0] for point in result["evaluations"]][:2] == [0, 2]  # 20 of 22 steps
    assert result["evaluations"][0][1] == 0
    assert 0 <= result["peak_memory_mb"] < 100
    assert result["arguments"] == {
        **result["arguments"],
        "lr": 0.01,
        "betas": [0.9, 0.999],
        "batch_size": 128,
        "schedule": "constant",
        "epochs": 2,
        "budget_seconds": None,
        "parameters": 650,
    }
    assert {path.name for path in finished.iterdir()} == {"result.json"}


def test_seconds_of_steps_end_a_run_and_the_curve_is_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(optimizer_recorder, "SECONDS_BETWEEN_REPORTS", 0.0)
    monkeypatch.setattr(optimizer_run, "_limit", lambda *_: nullcontext())  # of the true clock
    # Half a millisecond from one look at the clock to the next: a step, whatever the machine does.
    clock = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(clock) / 2000))
    reports = []
    write = optimizer_recorder.files.write
    monkeypatch.setattr(
        optimizer_recorder.files,
        "write",
        lambda path, content: (reports.append((path.name, content)), write(path, content)),
    )
    chosen = options(tmp_path, epochs=None, budget_seconds=0.3, schedule="linear", rate=None)
    assert optimizer_run.run(chosen) == 0
    result = result_of(tmp_path / "run")
    assert 0.3 <= result["seconds"] < 0.301
    assert result["rate"] == result["arguments"]["lr"] == 0.001  # the optimizer's own
    assert len(result["curve"]) <= 200 < result["steps"]
    assert 10 < len(result["evaluations"]) <= 21
    name, progress = reports[-2]
    assert name == "progress.json"
    assert progress["steps"] == result["steps"]
    assert 0 <= progress["score"] <= 1


def test_a_run_that_diverges_keeps_its_curve(tmp_path):
    assert optimizer_run.run(options(tmp_path, optimizer="sgd", rate=1e38)) == 1
    result = result_of(tmp_path / "run")
    assert result["status"] == "failed"
    assert re.fullmatch(r"diverged: the (training|test) loss is \w+ .*step \d+", result["error"])
    assert result["curve"][0][0] == 1
    assert result["evaluations"][0][0] == 0
    assert result["final"] == []
    assert result["final_loss"] is None


def test_an_optimizer_that_raises_in_the_middle(tmp_path, monkeypatch):
    step = torch.optim.Adam.step

    def faulty(self, closure=None):
        if self.state and next(iter(self.state.values()))["step"] >= 3:
            raise RuntimeError("the factor has no root")
        return step(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", faulty)
    assert optimizer_run.run(options(tmp_path)) == 1
    result = result_of(tmp_path / "run")
    assert result["status"] == "failed"
    assert result["error"].endswith("RuntimeError: the factor has no root")
    assert len(result["curve"]) == result["steps"] == 3


@pytest.mark.parametrize("told", ["result", "words"])
def test_a_step_longer_than_the_budget_ends_the_process(tmp_path, monkeypatch, told):
    """In the middle of it: what was done before is in the result."""
    step, steps = torch.optim.Adam.step, itertools.count(1)

    def slow(self, closure=None):
        if next(steps) == 4:
            time.sleep(60)
        return step(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", slow)
    monkeypatch.setattr(optimizer_run, "_load_libraries", lambda: None)  # would take a step, too
    place = tmp_path / "run" if told == "result" else None
    chosen = options(tmp_path, epochs=None, budget_seconds=0.4, output=place)

    def run():
        os.dup2(os.open(tmp_path / "said", os.O_CREAT | os.O_WRONLY), 1)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        optimizer_run.run(chosen)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(30)
    assert child.exitcode == 1
    error = "too slow: step 4 takes longer than the budget of 0.4 s"
    if told == "words":
        assert re.fullmatch(
            rf"3 steps in 0\.\d s, then failed: {error}\n", (tmp_path / "said").read_text()
        )
        return
    result = result_of(tmp_path / "run")
    assert (result["status"], result["error"], result["steps"]) == ("failed", error, 3)
    assert result["curve"][-1][0] == 3
    assert result["final"] == []
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"result.json"}


def test_a_signal_ends_a_run_without_a_result(tmp_path):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert optimizer_run.run(options(tmp_path, epochs=10**6)) == 128 + signal.SIGTERM
    assert not (tmp_path / "run" / "result.json").exists()


def test_without_a_directory_the_end_is_printed(tmp_path, capsys):
    assert optimizer_run.run(options(tmp_path, model="autoencoder", output=None, epochs=1)) == 0
    words = (
        r"11 steps in \d\.\d s: loss on the training set [\d.]+, test reconstruction error [\d.]+"
    )
    assert re.fullmatch(words, capsys.readouterr().out.strip())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adamm"}, "no optimizer is named 'adamm'"),
        ({"optimizer": "newton", "model": "mlp"}, "85002 parameters is too large"),
        ({"rate": -1.0}, "Invalid learning rate: -1.0"),
        ({"seed": -1}, "seed must not be negative"),
        ({"epochs": None}, "nothing says when a run ends"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(changes, message, tmp_path):
    with pytest.raises(Failure, match=message) as failure:
        optimizer_run.run(options(tmp_path, **changes))
    assert failure.value.exit_code == 2
    assert not (tmp_path / "run" / "result.json").exists()
