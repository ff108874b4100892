"""classify.py and compare.py end to end, on digits and on files of a few images."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from classification import checkpoints, data, loop
from classify import main
from common import run_directory
from compare import main as compare
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train import main as train

from npg.errors import NumericalError

ROOT = Path(__file__).parents[2]
OPTIMIZERS = {
    "adamw": [],
    "sgd": ["--schedule", "linear"],
    "natural-gradient": ["--option", "fisher=sampled", "--option", "cg-max-steps=3"],
}


def classify(track_dir, *words, code=0):
    arguments = ["--track-dir", str(track_dir), "--no-progress-bar", *map(str, words)]
    assert main(arguments) == code
    directories = sorted(path for path in Path(track_dir).iterdir() if path.is_dir())
    return directories[-1] if directories else None


def rows_of(directory):
    """Rows of progress.csv, as numbers, without the clock."""
    return [
        {name: float(value) for name, value in row.items() if name != "time/seconds"}
        for row in run_directory.read_progress(directory)
    ]


def saved(directory, name="last.pt"):
    return torch.load(directory / name, weights_only=True)


def described(state):
    """Everything in a checkpoint but the clock, tensors as bytes."""
    if isinstance(state, dict):
        return {name: described(value) for name, value in state.items() if name != "seconds"}
    if isinstance(state, list | tuple):
        return [described(value) for value in state]
    return state.numpy().tobytes() if isinstance(state, torch.Tensor) else state


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two epochs with AdamW; tests copy it before they change it."""
    return classify(tmp_path_factory.mktemp("runs"), "--optimizer", "adamw", "--epochs", 2)


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture
def default_interrupts():
    """A shell's background job, as CI may be, starts with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def before_step(monkeypatch):
    """Calls a function before the step with a number, counted over all runs."""

    def arrange(number, function):
        count = iter(range(10**6))
        step = loop.train_step

        def counted(*arguments):
            if next(count) == number:
                function()
            return step(*arguments)

        monkeypatch.setattr(loop, "train_step", counted)

    return arrange


# ------------------------------------------------------------------------------- run directories


def test_a_run_leaves_everything_in_its_directory(finished):
    assert finished.name == "digits_mlp_adamw_1"
    names = {path.name for path in finished.iterdir()}
    assert names >= {"config.yml", "progress.csv", "best.pt", "last.pt", "learning_curve.png"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not any(name.endswith(".tmp") for name in names)
    assert (finished / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    rows = rows_of(finished)
    assert [row["time/step"] for row in rows] == [11, 22]  # 1,438 samples are 11 batches of 128
    assert [row["time/epoch"] for row in rows] == [1, 2]
    assert rows[1]["train/loss"] < rows[0]["train/loss"]
    assert rows[1]["test/accuracy"] > 0.8
    events = EventAccumulator(str(finished)).Reload().Scalars("test/accuracy")
    assert [event.step for event in events] == [11, 22]
    assert [event.value for event in events] == pytest.approx([r["test/accuracy"] for r in rows])


def test_config_is_fully_resolved(finished):
    config = yaml.safe_load((finished / "config.yml").read_text())
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
    best = saved(directory, "best.pt")["progress"]
    assert best["best"] == max(accuracies)
    assert best["step"] == 11 * (1 + accuracies.index(max(accuracies)))
    assert saved(directory)["progress"]["step"] == 66


def test_the_summary_names_what_can_be_done_next(tmp_path, capsys):
    directory = classify(tmp_path, "--optimizer", "adam", "--epochs", 1)
    output = capsys.readouterr().out
    assert re.search(r"test accuracy 0\.\d+, best 0\.\d+, after 11 steps", output)
    assert f"tensorboard --logdir {directory}" in output
    assert str(directory / "learning_curve.png") in output
    assert str(directory / "best.pt") in output
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


# ---------------------------------------------------------------------------------------- resume


@pytest.mark.usefixtures("default_interrupts")
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
    assert str(broken / "last.pt") in output
    assert re.search(rf"classify\.py --resume {re.escape(str(broken))}$", output, re.MULTILINE)
    torch.manual_seed(99)
    assert main(["--resume", str(broken), "--no-progress-bar"]) == 0
    assert described(saved(broken)) == described(saved(whole))
    assert rows_of(broken) == rows_of(whole)


def test_more_epochs_are_as_if_asked_for_at_once(run, tmp_path):
    whole = classify(tmp_path / "whole", "--optimizer", "adamw", "--epochs", 3)
    assert main(["--resume", str(run), "--epochs", "3", "--no-progress-bar"]) == 0
    assert described(saved(run)) == described(saved(whole))
    assert rows_of(run) == rows_of(whole)
    assert run_directory.read_config(run)["options"]["epochs"] == 3


def test_seeds_matter(finished, tmp_path):
    other = classify(tmp_path, "--optimizer", "adamw", "--epochs", 2, "--seed", 1)
    assert rows_of(other) != rows_of(finished)


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


def test_a_damaged_or_missing_checkpoint(run, capsys):
    words = ["--resume", str(run), "--epochs", "4"]
    whole = (run / "last.pt").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no checkpoint"):
        (run / "last.pt").write_bytes(content)
        assert main(words) == 2
        assert "last.pt is damaged, or of another model" in capsys.readouterr().err
    (run / "last.pt").unlink()
    assert main(words) == 2
    assert "there is no checkpoint" in capsys.readouterr().err
    assert main(["--resume", str(run / "nowhere")]) == 2
    assert "is not the directory of a run" in capsys.readouterr().err


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
    assert str(directory / "last.pt") in error
    assert "Traceback" not in error
    good = saved(directory)
    assert good["progress"]["step"] == 0
    assert all(bool(value.isfinite().all()) for value in good["model"].values())


def test_parameters_that_are_no_numbers_are_not_saved(monkeypatch, tmp_path, capsys):
    """Here the very last step destroys them, which no training loss tells."""

    def destructive(optimizer, forward):
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
        checkpoints.save(directory / "last.pt", spoiled, None, checkpoints.Progress())
    assert set(saved(directory)["model"]) != set(spoiled.state_dict())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--optimizer adamm", "no optimizer is named 'adamm'; there are adam, adamw"),
        ("--optimizer sgd --option speed=1", "unexpected keyword argument 'speed'"),
        ("--option speed", "--option speed: write NAME=VALUE"),
        ("--option betas=[0.9", "is not YAML"),
        ("--optimizer adam --lr -1", "Invalid learning rate: -1"),
        ("--option damping=-1", "damping must not be negative"),
        ("--batch-size 1439", "batch_size must be at most the 1,438 training samples, got 1,439"),
        ("--batch-size 0", "batch_size must be at least 1"),
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


def test_runs_in_one_picture(finished, tmp_path, capsys):
    other = classify(tmp_path, "--optimizer", "sgd", "--epochs", 1)
    output = tmp_path / "picture.png"
    assert compare([str(finished), str(other), "--output", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")


def test_runs_that_cannot_be_compared(finished, tmp_path, capsys):
    other = classify(tmp_path, "--optimizer", "sgd", "--model", "autoencoder", "--epochs", 1)
    output = tmp_path / "picture.png"
    assert compare([str(finished), str(other), "--output", str(output)]) == 2
    assert "got autoencoder on digits, mlp on digits" in capsys.readouterr().err
    (other / "progress.csv").write_text("")
    assert compare([str(other), "--output", str(output)]) == 2
    assert "has no evaluation yet" in capsys.readouterr().err
    assert not output.exists()
