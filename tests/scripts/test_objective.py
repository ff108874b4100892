"""classify.py --objective: metrics in the place of the loss, and comparisons over seeds."""

import dataclasses
import re
import signal

import numpy as np
import pytest
import torch
from classification import comparison, data, models, objective
from classification.options import Options
from classify import main
from common import run_directory
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score
from torch import nn

from npg import optim
from tests.scripts.classified import classify, described, rows_of, saved

pytestmark = pytest.mark.usefixtures("undrawn")
COARSE = ("--model", "coarse", "--imbalance", 20, "--batch-size", 0)
SCORES = {
    "accuracy": accuracy_score,
    "f1": lambda y, p: f1_score(y, p, average="macro", zero_division=0),
}


@pytest.fixture
def batch():
    return data.load("digits", None, 0, torch.device("cpu")).train[:40]


# -------------------------------------------------------------------------------- what is minimised


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("optimizer", ["mle-guided-search", "evolution-strategies"])
def test_a_search_gets_the_metric_itself(name, optimizer, batch):
    model, task = models.build("linear", 8, 10)
    made = objective.objective_of(name, task, optim.create(optimizer, model), None)
    logits = model(batch.inputs)
    expected = 1 - SCORES[name](batch.labels, logits.argmax(1))
    assert made.searched(logits, batch).item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(made.loss(logits, batch), task.loss(logits, batch))


@pytest.mark.parametrize("name", SCORES)
def test_a_gradient_gets_the_expected_metric(name, batch):
    """Of 2,000 draws, from a prediction that is sure of nothing; five standard errors."""
    model, task = models.build("linear", 8, 10)
    made = objective.objective_of(name, task, optim.create("adamw", model), 2000)
    logits = model(batch.inputs).detach().requires_grad_()
    loss = made.loss(logits, batch)
    drawn = torch.distributions.Categorical(logits=logits.detach()).sample((500,))
    scores = [1 - SCORES[name](batch.labels, row) for row in drawn]
    error = np.std(scores) * (1 / 500 + 1 / 2000) ** 0.5
    assert abs(loss.item() - np.mean(scores)) < 5 * error
    assert made.searched is None
    if name == "accuracy":  # E[1 − hits] = 1 − mean of p(label)
        misses = 1 - logits.softmax(1)[torch.arange(40), batch.labels].mean()
        exact, found = (torch.autograd.grad(value, logits)[0] for value in (misses, loss))
        cosine = nn.functional.cosine_similarity(exact.flatten(), found.flatten(), dim=0)
        assert cosine > 0.95


# ---------------------------------------------------------------------------------------- one run


def test_a_run_of_a_metric_goes_on_bit_for_bit(classified, tmp_path):
    """Its draws are of torch's own generator."""
    words = f"--objective f1 --optimizer adamw --draws 8 --start-from {classified} --epochs"
    whole = classify(tmp_path / "whole", *words.split(), 2)
    directory = classify(tmp_path / "parts", *words.split(), 1)
    torch.manual_seed(99)
    assert main(["--resume", str(directory), "--epochs", "2", "--no-progress-bar"]) == 0
    assert described(saved(directory)) == described(saved(whole))
    assert rows_of(directory) == rows_of(whole)
    assert {"test/macro_f1", "test/accuracy", "test/loss"} <= set(rows_of(whole)[0])
    assert saved(whole)["progress"]["best"] == max(r["test/macro_f1"] for r in rows_of(whole))


def test_a_run_starts_where_another_ended(classified, tmp_path):
    words = f"--optimizer sgd --lr 0 --option momentum=0 --epochs 1 --start-from {classified}"
    directory = classify(tmp_path, *words.split())
    before, after = saved(classified), saved(directory)
    assert described(after["model"]) == described(before["model"])
    assert after["progress"]["step"] == 11


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--objective f1 --model autoencoder", "--objective f1 is of classes: choose a --model"),
        (
            "--start-from {run} --seed 1",
            "another seed, and was trained on what may be test data here: give --seed 0",
        ),
        ("--start-from {run} --imbalance 3", "has another imbalance: give --imbalance 1.0"),
        (
            "--start-from {run} --imbalance 3 --model linear",
            "another model and imbalance: give --model mlp --imbalance 1.0",
        ),
        ("--start-from nowhere", "nowhere is not the directory of a run"),
        ("--imbalance 0.5", "imbalance must be a number ≥ 1, got 0.5"),
        ("--objective f1 --draws 1", "draws must be at least 2, got 1"),
        ("--seeds 0", "seeds must be at least 1"),
        ("--seeds 2 --start-from {run}", "--seeds trains what it starts from"),
        ("--resume {run} --seeds 2", "--seeds starts new runs"),
        ("--seeds 2 --objective f1 --baseline-optimizer adamm", "no optimizer is named 'adamm'"),
        ("--seeds 2 --objective f1 --optimizer nope", "no optimizer is named 'nope'"),
        ("--seeds 2 --objective f1 --option speed=1", "unexpected keyword argument 'speed'"),
        ("--seeds 2 --objective f1 --model autoencoder", "--objective f1 is of classes"),
        ("--baseline-optimizer nope --objective f1", "or leave out --baseline-optimizer"),
        ("--baseline-lr 1 --baseline-epochs 100 --seeds 2", "out --baseline-lr, --baseline-epochs"),
        ("--draws 64", "--draws is for the score-function gradient of a metric, which the loss"),
        ("--draws 64 --objective f1 --optimizer mle-guided-search", "which a search does without"),
        # The seed decides how many samples of the later classes are in the training data.
        ("--seeds 2 --imbalance 20 --batch-size 490", "at most the 484 training samples"),
    ],
)
def test_what_cannot_work_leaves_nothing(words, message, classified, tmp_path, capsys):
    words = words.format(run=classified).split()
    assert main([*words, "--track-dir", str(tmp_path), "--no-progress-bar"]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ comparisons


def test_the_table_is_of_the_runs(tmp_path, capsys):
    """Means, gains and intervals, recomputed from progress.csv by SciPy's paired test."""
    words = (
        "--objective f1 --optimizer mle-guided-search --option sigma=0.3 --option scale=absolute"
    )
    classify(
        tmp_path, *words.split(), *COARSE, "--seeds", 2, "--seed", 4, "--baseline-epochs", 20,
        "--baseline-lr", 0.1, "--epochs", 4, "--eval-freq", 0,
    )  # fmt: skip
    output = capsys.readouterr().out
    final = {}
    for directory in tmp_path.iterdir():
        options = run_directory.read_config(directory)["options"]
        role = options["objective"], options["start_from"] is not None
        assert "seeds" not in options
        row = rows_of(directory)[-1]
        final.setdefault(role, {})[options["seed"]] = row["test/macro_f1"]
        assert row["time/epoch"] == (4 if options["start_from"] else 20)
    assert [sorted(values) for values in final.values()] == [[4, 5]] * 3
    before, continued, metric = (
        np.array([final[role][seed] for seed in (4, 5)])
        for role in (("loss", False), ("loss", True), ("f1", True))
    )
    rows = {
        r"cross-entropy": before,
        r"… continued": continued,
        r"f1 by mle-guided-search": metric,
        r"gain over cross-entropy": metric - before,
        r"gain over … continued": metric - continued,
    }
    for name, values in rows.items():
        printed = re.search(rf"^ *{name} +(\S+) \[(\S+), (\S+)\]", output, re.MULTILINE).groups()
        interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        least = -1 if "gain" in name else 0
        expected = (values.mean(), max(interval.low, least), min(interval.high, 1))
        assert [float(number) for number in printed] == pytest.approx(expected, abs=5.1e-4)
    assert "coarse on digits, imbalance 20, seeds 4 to 5" in output
    for name, numbers in {
        "cross-entropy": ("adamw_1", "adamw_3"),
        "… continued": ("adamw_2", "adamw_4"),
        "f1 by mle-guided-search": ("mle-guided-search_1", "mle-guided-search_2"),
    }.items():
        paths = " ".join(str(tmp_path / f"digits_coarse_{number}") for number in numbers)
        assert re.search(rf"^  {name} +{re.escape(paths)}$", output, re.MULTILINE)


def test_seeds_of_the_loss(tmp_path, capsys):
    classify(tmp_path, "--optimizer", "adamw", "--model", "linear", "--seeds", 2, "--epochs", 1)
    assert len(list(tmp_path.iterdir())) == 2
    assert re.search(r"adamw +0\.\d+ \[", capsys.readouterr().out)


def test_one_seed_has_no_interval(tmp_path, capsys):
    assert comparison.described(np.array([0.25]), (0, 1)) == "0.250"
    classify(tmp_path, "--optimizer", "sgd", "--seeds", 1, "--seed", 4, "--epochs", 1)
    output = capsys.readouterr().out
    assert "mlp on digits, imbalance 1, seed 4: test data\n" in output
    assert re.search(r"^ *sgd +0\.\d+ +0\.\d+ *$", output, re.MULTILINE)


def test_an_interval_ends_where_the_figure_does():
    """Of two values that differ by 0.1, the margin is 0.05 × 12.706, t of one degree of freedom."""
    for values, limits, expected in (
        ([0.25, 0.25], (-1, 1), "+0.250 [+0.250, +0.250]"),
        ([0.2, 0.3], (0, 1), "+0.250 [+0.000, +0.885]"),
        ([0.7, 0.8], (0, 1), "+0.750 [+0.115, +1.000]"),
        ([0.2, 0.3], (-1, 1), "+0.250 [-0.385, +0.885]"),
        ([0.7, 0.8], (0, np.inf), "+0.750 [+0.115, +1.385]"),
    ):
        assert comparison.described(np.array(values), limits, sign="+") == expected


def test_a_failure_ends_a_comparison(tmp_path, capsys):
    words = ("--optimizer", "sgd", "--lr", 1e30, "--seeds", 3, "--epochs", 1)
    classify(tmp_path, *words, code=1)
    assert len(list(tmp_path.iterdir())) == 1
    printed = capsys.readouterr()
    assert "the training loss is" in printed.err
    assert "comparison ended after 0 of 3 runs" in printed.out


@pytest.mark.usefixtures("default_interrupts")
def test_an_interrupted_comparison_says_what_there_is(before_step, tmp_path, capsys):
    """In the second run, whose command to go on with trains that run alone."""
    before_step(13, lambda: signal.raise_signal(signal.SIGINT))
    words = "--objective f1 --model coarse --seeds 2 --baseline-epochs 1 --epochs 1"
    classify(tmp_path, *words.split(), "--optimizer", "adamw", code=130)
    output = capsys.readouterr().out
    first, second = (tmp_path / f"digits_coarse_adamw_{number}" for number in (1, 2))
    assert f"--resume {second}\n" in output
    assert "comparison ended after 1 of 6 runs, without a table" in output
    assert f"  cross-entropy  {first}\n" in output
    assert "--seeds starts afresh" in output
    assert "gain over" not in output


def test_the_roles_differ_in_what_they_should():
    chosen = Options(
        objective="f1", optimizer="sgd", lr=0.3, option=("momentum=0",), epochs=7, seeds=1, draws=9
    )
    results = comparison.Results(chosen)
    plan = {}
    for role, options in comparison.planned(chosen):
        plan[role] = dataclasses.replace(options, start_from=results.start(role))
        results.add(role, run_directory.Path(f"runs/{len(plan)}"), {"loss": 1.0})
    baseline, continued, metric = plan.values()
    assert (baseline.objective, baseline.optimizer, baseline.epochs) == ("loss", "adamw", 100)
    assert (continued.objective, continued.optimizer, continued.epochs) == ("loss", "adamw", 7)
    assert (metric.objective, metric.optimizer, metric.lr, metric.epochs) == ("f1", "sgd", 0.3, 7)
    assert [run.draws for run in plan.values()] == [None, None, 9]
    assert baseline.start_from is None
    assert {str(continued.start_from), str(metric.start_from)} == {"runs/1"}


# ------------------------------------------------------------------------------------------- slow


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--optimizer mle-guided-search --option scale=absolute --option sigma=0.3 "
        "--option candidates=16",
        "--optimizer adamw --lr 0.1",
    ],
)
def test_macro_f1_rises_above_the_cross_entropys(words, tmp_path, capsys):
    """Five seeds: the interval of the gain, over converged cross-entropies, excludes 0."""
    classify(
        tmp_path, "--objective", "f1", *COARSE, *words.split(), "--seeds", 5, "--eval-freq", 0,
        "--baseline-optimizer", "bfgs", "--epochs", 150,
    )  # fmt: skip
    output = capsys.readouterr().out
    for role in ("cross-entropy", "… continued"):
        low = re.search(rf"gain over {role} +\S+ \[(\S+),", output).group(1)
        assert float(low) > 0
