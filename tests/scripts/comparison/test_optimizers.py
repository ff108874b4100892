"""A comparison of optimizers from its options to its record."""

import json

import pytest
from common.failures import Failure
from comparison import files, optimizer_plan, optimizers, session
from comparison.optimizer_options import Optimizers


def options(tmp_path, **changes):
    given = {"optimizers": ("sgd",), "models": ("linear",), "epochs": 1, "output": tmp_path}
    return Optimizers(**{**given, "rates": 2, "seeds": 1, **changes})


@pytest.fixture
def without_page(monkeypatch):
    """Drawing takes long, and is tested elsewhere."""
    monkeypatch.setattr(session, "write_page", lambda path: path)


def pretend(chosen, *errors):
    """Writes results of all runs, as if they had been made."""
    jobs, _ = optimizer_plan.plan(chosen)
    for job, error in zip(jobs, errors, strict=True):
        job.directory.mkdir(parents=True)
        result = {
            **job.about,
            "status": "failed" if error else "finished",
            "error": error,
            "steps": 11,
            "seconds": 0.1,
            "step_seconds": 0.01,
            "peak_memory_mb": None,
            "metric": "accuracy",
            "final": [] if error else [0.9],
            "final_loss": None if error else 0.3,
        }
        files.write(job.directory / files.RESULT, result)


def test_runs_in_processes_of_their_own(tmp_path, monkeypatch, capsys):
    written = []  # drawing takes long, and is tested elsewhere
    monkeypatch.setattr(session, "write_page", lambda path: written.append(path) or path)
    chosen = options(tmp_path, optimizers=("sgd", "newton"), models=("mlp",), rates=1)
    assert optimizers.run(chosen) == 0
    directory = tmp_path / "runs" / "sgd_digits-mlp_0_0.05"
    result = json.loads((directory / "result.json").read_text())
    assert result["status"] == "finished", result["error"]
    assert result["threads"] == 1
    assert result["final"][0] > 0.5
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["kind"] == "optimizer"
    assert record["budget"] == "1 epoch"
    assert record["planned"] == [directory.name]
    (refusal,) = record["does_not_apply"]
    assert (refusal["name"], refusal["task"]) == ("newton", "digits-mlp")
    said = capsys.readouterr()
    assert "note: does not apply to digits-mlp: Newton: a dense matrix" in said.err
    assert "0.05" in said.out
    before = (directory / "result.json").stat().st_mtime_ns
    assert optimizers.run(chosen) == 0
    assert (directory / "result.json").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "comparison.json").read_text())["does_not_apply"] == [refusal]
    assert written == [tmp_path, tmp_path]


@pytest.mark.usefixtures("without_page")
@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("", 0),
        ("diverged: the training loss is nan at step 3", 0),
        ("too slow: step 1 takes longer than the budget of 5 s", 0),
        ("RuntimeError: no root", 1),
    ],
)
def test_an_optimizer_that_cannot_is_no_failure_of_the_comparison(error, code, tmp_path, capsys):
    chosen = options(tmp_path)
    pretend(chosen, "", error)
    assert optimizers.run(chosen) == code
    assert ("1 of 2" in capsys.readouterr().out) == bool(error)


@pytest.mark.usefixtures("without_page")
def test_another_target_is_another_page_of_the_same_comparison(tmp_path):
    pretend(options(tmp_path), "", "")
    for target in ({}, {"accuracy": 0.9, "loss": 0.2}):
        assert optimizers.run(options(tmp_path, target=target)) == 0
        assert json.loads((tmp_path / "comparison.json").read_text())["target"] == target


@pytest.mark.usefixtures("without_page")
def test_another_budget_is_another_comparison(tmp_path):
    pretend(options(tmp_path), "", "")
    assert optimizers.run(options(tmp_path)) == 0
    with pytest.raises(Failure, match=r"budget 1 epoch, this one has 5 s of training steps"):
        optimizers.run(options(tmp_path, budget_seconds=5.0))


def test_nothing_that_applies(tmp_path):
    with pytest.raises(Failure, match="none of the optimizers applies"):
        optimizers.run(options(tmp_path, optimizers=("newton",), models=("mlp",)))
    assert not list(tmp_path.iterdir())
