"""The rates of a sweep, the best of them, and the table of both."""

import io
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from comparison import files, optimizer_summary, rates
from comparison.job import Job
from rich.console import Console

from npg import optim
from npg.errors import ConfigurationError


@pytest.mark.parametrize("name", optim.names())
def test_every_optimizer_takes_all_rates_of_a_sweep_around_its_own(name):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    swept = rates.swept(name, 5)
    assert swept[2] == optim.create(name, model).param_groups[0]["lr"]
    for rate, higher in pairwise(swept):
        assert higher / rate == pytest.approx(3, rel=0.01)
    for rate in swept:
        assert optim.create(name, model, rate).param_groups[0]["lr"] == rate


@pytest.mark.parametrize(
    ("count", "swept"),
    [(1, [0.001]), (2, [0.000333, 0.001]), (3, [0.000333, 0.001, 0.003])],
)
def test_the_own_rate_is_always_tried(count, swept):
    assert rates.swept("adamw", count) == swept


def test_an_unknown_optimizer():
    with pytest.raises(ConfigurationError, match="no optimizer is named 'adamm'"):
        rates.swept("adamm", 3)


def run(rate, seed, final_loss=None, metric=0.5, status="finished"):
    return SimpleNamespace(
        name="sgd",
        task="digits-mlp",
        rate=rate,
        seed=seed,
        status=status,
        error="" if status == "finished" else "diverged: the training loss is nan at step 3",
        final_loss=final_loss,
        final=[metric] if status == "finished" else [],
        metric="accuracy",
        step_seconds=0.002,
        peak_memory_mb=12.0,
    )


def test_the_best_rate_is_that_of_the_lowest_mean_training_loss_whatever_the_test_says():
    runs = [
        run(0.1, 0, 0.2, metric=0.9),
        run(0.1, 1, 0.4, metric=0.9),
        run(0.3, 0, 0.1, metric=0.1),
        run(0.3, 1, 0.3, metric=0.1),
        run(1.0, 0, 0.01),  # lowest of all, but for its other seed
        run(1.0, 1, 0.9),
    ]
    assert rates.final_losses(runs) == pytest.approx({0.1: 0.3, 0.3: 0.2, 1.0: 0.455})
    assert rates.at_best(runs) == runs[2:4]


@pytest.mark.parametrize("status", ["failed", "missing"])
def test_a_rate_has_to_get_through_with_every_seed(status):
    runs = [
        run(0.1, 0, 0.5),
        run(0.1, 1, 0.5),
        run(0.3, 0, 0.1),
        run(0.3, 1, status=status),
    ]
    losses = rates.final_losses(runs)
    assert losses[0.1] == 0.5
    assert math.isnan(losses[0.3])
    assert rates.at_best(runs) == runs[:2]


def test_where_no_rate_gets_through_none_is_best():
    assert rates.at_best([run(0.1, 0, status="failed"), run(0.3, 0, status="failed")]) == []
    assert rates.at_best([]) == []


def test_a_seed_that_has_not_begun_excludes_nothing():
    runs = [run(0.1, 0, 0.5), run(0.3, 0, 0.4), run(0.1, 1, status="missing")]
    assert rates.at_best(runs) == [runs[1]]


def test_the_table(tmp_path):
    runs = [
        run(0.1, 0, 0.2, metric=0.8),
        run(0.1, 1, 0.4, metric=0.9),
        run(0.3, 0, 0.6),
        run(0.3, 1, 0.9),
        run(0.9, 0, 0.1),
        run(0.9, 1, status="failed"),
    ]
    jobs = []
    for one in runs:
        jobs.append(Job(f"{one.rate}_{one.seed}", [], tmp_path / f"{one.rate}_{one.seed}"))
        jobs[-1].directory.mkdir()
        files.write(jobs[-1].directory / files.RESULT, vars(one))
    jobs.append(Job("waiting", [], tmp_path / "waiting"))
    text = io.StringIO()
    optimizer_summary.show(jobs, Console(file=text, width=80))
    row = next(line for line in text.getvalue().splitlines() if "sgd" in line)
    cells = row.split()
    assert cells == [
        "sgd",
        "0.1*",  # the lowest one tried
        "0.3±0.1",
        "2.5",  # 0.75 / 0.3
        "0.85±0.07",
        "2",
        "12",
        *("1", "of", "6"),
    ]
