"""classify.py and compare.py end to end, on digits and on files of a few images."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from classification import data, loop
from classify import main
from compare import main as compare
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.scripts.classified import classify, rows_of, saved

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("undrawn")

# ------------------------------------------------------------------------------- run directories


def test_a_run_leaves_everything_in_its_directory(classified):
    assert classified.name == "digits_mlp_adamw_1"
    names = {path.name for path in classified.iterdir()}
    assert names >= {"config.yml", "progress.csv", "best.zip", "last.zip", "learning_curve.png"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not any(name.endswith(".tmp") for name in names)
    assert (classified / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    rows = rows_of(classified)
    assert [row["time/step"] for row in rows] == [11, 22]  # 1,438 samples are 11 batches of 128
    assert [row["time/epoch"] for row in rows] == [1, 2]
    assert rows[1]["train/loss"] < rows[0]["train/loss"]
    assert rows[1]["test/accuracy"] > 0.8
    events = EventAccumulator(str(classified)).Reload().Scalars("test/accuracy")
    assert [event.step for event in events] == [11, 22]
    assert [event.value for event in events] == pytest.approx([r["test/accuracy"] for r in rows])


def test_config_is_fully_resolved(classified):
    config = yaml.safe_load((classified / "config.yml").read_text())
    assert config["options"]["batch_size"] == 128
    assert config["options"]["epochs"] == 2
    assert {"python", "torch", "scikit-learn"} <= set(config["versions"])


@pytest.mark.parametrize("model", ["mlp", "autoencoder"])
def test_what_was_logged_is_what_the_checkpoint_does(model, tmp_path):
    """Recomputed from the parameters with NumPy."""
    directory = classify(tmp_path, "--model", model, "--optimizer", "adam", "--epochs", 1)
    test = data.load("digits", None, 0, torch.device("cpu")).test
    hidden = test.inputs.flatten(1).double().numpy()
    parameters = [value.double().numpy() for value in saved(directory)["model"].values()]
    activation = np.tanh if model == "autoencoder" else lambda x: np.maximum(x, 0)
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        hidden = activation(hidden @ weight.T + bias)
    logits = hidden @ parameters[-2].T + parameters[-1]
    last = rows_of(directory)[-1]
    if model == "mlp":
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        loss = -log_p[np.arange(len(test)), test.labels].mean()
        assert last["test/accuracy"] == (logits.argmax(1) == test.labels.numpy()).mean()
    else:
        p, images = 1 / (1 + np.exp(-logits)), test.images.flatten(1).numpy()
        loss = -(images * np.log(p) + (1 - images) * np.log(1 - p)).sum(1).mean()
        error = ((p - images) ** 2).sum(1).mean()
        assert last["test/reconstruction_error"] == pytest.approx(error, rel=1e-5)
    assert last["test/loss"] == pytest.approx(loss, rel=1e-5)


def test_the_best_checkpoint_is_the_best(tmp_path):
    """A rate that first learns and then destroys."""
    words = ("--optimizer", "sgd", "--lr", 1.0, "--epochs", 6, "--seed", 1)
    directory = classify(tmp_path, *words)
    accuracies = [row["test/accuracy"] for row in rows_of(directory)]
    assert accuracies[-1] < max(accuracies)
    best = saved(directory, "best.zip")["progress"]
    assert best["best"] == max(accuracies)
    assert best["step"] == 11 * (1 + accuracies.index(max(accuracies)))
    assert saved(directory)["progress"]["step"] == 66


def test_the_summary_names_what_can_be_done_next(tmp_path, capsys):
    directory = classify(tmp_path, "--optimizer", "adam", "--epochs", 1)
    output = capsys.readouterr().out
    assert re.search(r"test accuracy 0\.\d+, best 0\.\d+, after 11 steps", output)
    assert f"tensorboard --logdir {directory}" in output
    assert str(directory / "learning_curve.png") in output
    assert str(directory / "best.zip") in output
    command = re.search(r"continue with +\S+ \S*classify\.py (.*)", output).group(1).split()
    assert main([*command, "--no-progress-bar"]) == 0
    assert [row["time/epoch"] for row in rows_of(directory)] == [1, 2]


def test_from_a_shell_with_a_progress_bar(tmp_path):
    words = f"--data digits --optimizer adamw --epochs 1 --track-dir {tmp_path}"
    script = ROOT / "scripts" / "classify.py"
    done = subprocess.run(
        [sys.executable, script, *words.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"adamw digits.*100%.*loss \d.*accuracy 0\.\d+", done.stdout)


# ------------------------------------------------------------------------------------- when to do


def test_evaluations_as_often_as_wanted(tmp_path):
    words = ("--optimizer", "sgd", "--epochs", 1)
    for every, steps in ((4, [4, 8, 11]), (0, [11])):
        directory = classify(tmp_path / str(every), *words, "--eval-freq", every)
        assert [row["time/step"] for row in rows_of(directory)] == steps


def test_seconds_end_a_run(tmp_path):
    words = ("--optimizer", "sgd", "--budget-seconds", 0.1, "--eval-freq", 0)
    progress = saved(classify(tmp_path, *words))["progress"]
    assert 0.1 <= progress["seconds"] < 1
    assert progress["step"] > 1


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.2, 0.2, 0.2, 0.2]),
        ("linear", [0.2, 0.15, 0.1, 0.05]),
        # (1 + cos(π k/4)) / 10
        ("cosine", [0.2, 0.1707107, 0.1, 0.0292893]),
    ],
)
def test_schedules(schedule, rates, tmp_path):
    words = f"--optimizer sgd --lr 0.2 --batch-size 1438 --epochs 4 --schedule {schedule}"
    directory = classify(tmp_path, *words.split())
    assert [row["train/lr"] for row in rows_of(directory)] == pytest.approx(rates, rel=1e-6)


def test_every_epoch_sees_every_sample_once_in_a_new_order(monkeypatch, tmp_path):
    seen = []
    batch = loop.Loop._batch

    def watched(self, step):
        samples = batch(self, step)
        seen.append(samples.inputs)
        return samples

    monkeypatch.setattr(loop.Loop, "_batch", watched)
    classify(tmp_path, "--optimizer", "sgd", "--batch-size", 719, "--epochs", 2)  # 2 × 719 = 1438
    first, second = torch.cat(seen[:2]).flatten(1), torch.cat(seen[2:]).flatten(1)
    assert not torch.equal(first, second)
    train = data.load("digits", None, 0, torch.device("cpu")).train.inputs.flatten(1)
    for epoch in (first, second):
        assert sorted(map(bytes, epoch.numpy())) == sorted(map(bytes, train.numpy()))


def test_options_reach_the_optimizer(tmp_path):
    words = "--optimizer adam --lr 3e-3 --option betas=[0.8,0.9] --option eps=1e-6 --epochs 1"
    group = saved(classify(tmp_path, *words.split()))["optimizer"]["param_groups"][0]
    assert (group["lr"], tuple(group["betas"]), group["eps"]) == (3e-3, (0.8, 0.9), 1e-6)


def test_help_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in (
        "--optimizer",
        "natural-gradient",
        "--budget-seconds",
        "fashion-mnist",
        "--resume",
    ):
        assert word in text


# ----------------------------------------------------------------------------------- comparisons


def test_runs_in_one_picture(classified, tmp_path, capsys):
    other = classify(tmp_path, "--optimizer", "sgd", "--epochs", 1)
    output = tmp_path / "picture.png"
    assert compare(["runs", str(classified), str(other), "--output", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")


def test_runs_that_cannot_be_compared(classified, tmp_path, capsys):
    other = classify(tmp_path, "--optimizer", "sgd", "--model", "autoencoder", "--epochs", 1)
    output = tmp_path / "picture.png"
    assert compare(["runs", str(classified), str(other), "--output", str(output)]) == 2
    assert "got autoencoder on digits, mlp on digits" in capsys.readouterr().err
    (other / "progress.csv").write_text("")
    assert compare(["runs", str(other), "--output", str(output)]) == 2
    assert "has no evaluation yet" in capsys.readouterr().err
    assert not output.exists()
