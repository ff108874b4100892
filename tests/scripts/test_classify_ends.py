"""How runs of classify.py end, and go on."""

import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from classification import checkpoints, loop
from classify import main
from common import run_directory
from train import main as train

from npg.errors import NumericalError
from tests.scripts.classified import classify, described, rows_of, saved

OPTIMIZERS = {
    "adamw": [],
    "sgd": ["--schedule", "linear"],
    "natural-gradient": ["--option", "fisher=sampled", "--option", "cg-max-steps=3"],
}


@pytest.fixture
def run(classified, tmp_path):
    return Path(shutil.copytree(classified, tmp_path / "copy"))


# ---------------------------------------------------------------------------------------- resume


@pytest.mark.usefixtures("default_interrupts", "undrawn")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_interrupted_in_an_epoch_and_resumed_is_uninterrupted(
    optimizer, before_step, tmp_path, capsys
):
    words = ["--optimizer", optimizer, "--epochs", 2, "--seed", 5, *OPTIMIZERS[optimizer]]
    whole = classify(tmp_path / "whole", *words)
    before_step(7, lambda: signal.raise_signal(signal.SIGINT))
    broken = classify(tmp_path / "broken", *words, code=130)
    assert saved(broken)["progress"]["step"] == 8
    output = capsys.readouterr().out
    assert str(broken / "last.zip") in output
    assert re.search(rf"classify\.py --resume {re.escape(str(broken))}$", output, re.MULTILINE)
    torch.manual_seed(99)
    assert main(["--resume", str(broken), "--no-progress-bar"]) == 0
    assert described(saved(broken)) == described(saved(whole))
    assert rows_of(broken) == rows_of(whole)


@pytest.mark.usefixtures("undrawn")
def test_more_epochs_are_as_if_asked_for_at_once(run, tmp_path):
    whole = classify(tmp_path / "whole", "--optimizer", "adamw", "--epochs", 3)
    assert main(["--resume", str(run), "--epochs", "3", "--no-progress-bar"]) == 0
    assert described(saved(run)) == described(saved(whole))
    assert rows_of(run) == rows_of(whole)
    assert run_directory.read_config(run)["options"]["epochs"] == 3


def test_a_checkpoint_holds_the_generator(tmp_path):
    """Which a model with dropout draws from."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.Adam(model.parameters())
    torch.rand(3)
    progress = checkpoints.Progress(step=7, seconds=1.5, loss_sum=2.5, loss_count=3, best=0.25)
    checkpoints.save(tmp_path / "file", model, optimizer, progress)
    drawn = torch.rand(5)
    assert checkpoints.load(tmp_path / "file", model, optimizer) == progress
    assert torch.equal(torch.rand(5), drawn)


@pytest.mark.usefixtures("undrawn")
def test_seeds_matter(classified, tmp_path):
    other = classify(tmp_path, "--optimizer", "adamw", "--epochs", 2, "--seed", 1)
    assert rows_of(other) != rows_of(classified)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "has done its 22 steps in .* s: give more --epochs"),
        ("--epochs 4 --lr 0.1 --model cnn", "model, lr differ from those of the run"),
        ("--epochs 4 --option eps=0.1", "option differ"),
    ],
)
def test_resume_refuses_another_run(run, words, message, capsys):
    assert main(["--resume", str(run), *words.split()]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_runs_of_the_two_scripts_are_told_apart(run, finished_run, capsys):
    assert main(["--resume", str(finished_run)]) == 2
    assert "is a run of train.py" in capsys.readouterr().err
    assert train(["trpo", "--resume", str(run)]) == 2
    assert "is a run of classify.py, not of trpo" in capsys.readouterr().err


def test_a_damaged_checkpoint(run, capsys):
    words = ["--resume", str(run), "--epochs", "4"]
    whole = (run / "last.zip").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no checkpoint"):
        (run / "last.zip").write_bytes(content)
        assert main(words) == 2
        assert "last.zip is damaged, or of another model" in capsys.readouterr().err
    assert main(["--resume", str(run / "nowhere")]) == 2
    assert "is not the directory of a run" in capsys.readouterr().err


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(run, capsys):
    rows = rows_of(run)
    (run / "last.zip").unlink()
    for left in ("best.zip", "progress.csv"):  # a training that would be lost
        before = (run / "progress.csv").read_bytes()
        assert main(["--resume", str(run), "--no-progress-bar"]) == 2
        said = capsys.readouterr().err
        assert re.search(rf"no last.zip to go on from, and .*overwrite its .*{left}", said)
        assert (run / "progress.csv").read_bytes() == before
        (run / left).unlink()
    assert main(["--resume", str(run), "--no-progress-bar"]) == 0
    assert "the run begins anew" in capsys.readouterr().err
    assert rows_of(run) == rows


def test_a_run_of_an_earlier_version_goes_on(run, tmp_path, capsys):
    """Its checkpoints are what torch.save wrote."""
    whole = classify(tmp_path / "whole", "--optimizer", "adamw", "--epochs", 3)
    for name in ("best", "last"):
        torch.save(saved(run, f"{name}.zip"), run / f"{name}.pt")
        (run / f"{name}.zip").unlink()
    (run / "whole.pt").write_bytes((run / "last.pt").read_bytes())
    (run / "last.pt").write_bytes(b"half")
    assert main(["--resume", str(run), "--epochs", "3", "--no-progress-bar"]) == 2
    assert "last.pt is damaged" in capsys.readouterr().err
    (run / "whole.pt").rename(run / "last.pt")
    assert main(["--resume", str(run), "--epochs", "3", "--no-progress-bar"]) == 0
    assert described(saved(run)) == described(saved(whole))
    assert rows_of(run) == rows_of(whole)


# ------------------------------------------------------------------------------- ends and faults


@pytest.mark.usefixtures("default_interrupts")
def test_a_termination_before_the_first_evaluation_is_saved_too(before_step, tmp_path):
    before_step(0, lambda: signal.raise_signal(signal.SIGTERM))
    directory = classify(tmp_path, "--optimizer", "adam", code=128 + signal.SIGTERM)
    assert saved(directory)["progress"]["step"] == 1
    assert main(["--resume", str(directory), "--epochs", "1", "--no-progress-bar"]) == 0
    assert [row["time/step"] for row in rows_of(directory)] == [11]


def test_a_loss_that_is_no_number_ends_with_1(tmp_path, capsys):
    words = ("--optimizer", "sgd", "--lr", 1e30)
    directory = classify(tmp_path, *words, code=1)
    error = capsys.readouterr().err
    assert re.search(r"the training loss is (nan|inf) at step \d", error)
    assert str(directory / "last.zip") in error
    assert "Traceback" not in error
    good = saved(directory)
    assert good["progress"]["step"] == 0
    assert all(bool(value.isfinite().all()) for value in good["model"].values())


def test_parameters_that_are_no_numbers_are_not_saved(monkeypatch, tmp_path, capsys):
    """Here the very last step destroys them, which no training loss tells."""

    def destructive(optimizer, forward, objective):
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].fill_(torch.nan)
        return 1.0

    monkeypatch.setattr(loop, "train_step", destructive)
    words = ("--optimizer", "sgd", "--batch-size", 1438, "--epochs", 1)
    directory = classify(tmp_path, *words, code=1)
    assert "the test loss is nan after step 1" in capsys.readouterr().err
    assert saved(directory)["progress"]["step"] == 0
    spoiled = torch.nn.Linear(1, 1)
    spoiled.weight.data.fill_(torch.inf)
    with pytest.raises(NumericalError, match="not finite after step 0"):
        checkpoints.save(directory / "last.zip", spoiled, None, checkpoints.Progress())
    assert set(saved(directory)["model"]) != set(spoiled.state_dict())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--optimizer adamm", "no optimizer is named 'adamm'; there are adafactor"),
        ("--optimizer sgd --option speed=1", "unexpected keyword argument 'speed'"),
        ("--option speed", "--option speed: write NAME=VALUE"),
        ("--option betas=[0.9", "is not YAML"),
        ("--optimizer adam --lr -1", "Invalid learning rate: -1"),
        ("--option damping=-1", "damping must not be negative"),
        ("--batch-size 1439", "batch_size must be at most the 1,438 training samples, got 1,439"),
        ("--batch-size -1", "batch_size must not be negative"),
        ("--epochs 0", "epochs must be at least 1"),
        ("--budget-seconds -1", "budget_seconds must not be negative"),
        ("--device tpu9", "--device tpu9 cannot be used"),
        ("--data fashion-mnist", "--data fashion-mnist needs its files: --data-dir"),
    ],
)
def test_configuration_error_exits_with_2_and_leaves_nothing(words, message, tmp_path, capsys):
    assert main([*words.split(), "--track-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "runs"])
def test_a_track_dir_that_is_a_file(below, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    assert main(["--track-dir", str(file / below)]) == 2
    assert f"--track-dir {file / below} is a file, or below one" in capsys.readouterr().err
