"""What a comparison of optimizers is going to run, and what it refuses."""

from pathlib import Path

import pytest
import tyro
from comparison import optimizer_plan
from comparison.execution_options import Execution
from comparison.optimizer_options import OptimizerRun, Optimizers

from npg import optim
from npg.errors import ConfigurationError


def options(tmp_path, **changes):
    return Optimizers(
        **{"optimizers": ("sgd",), "epochs": 1, "output": tmp_path / "comparison", **changes}
    )


def test_every_optimizer_at_equally_many_rates_from_every_seed(tmp_path):
    jobs, refused = optimizer_plan.plan(
        options(
            tmp_path, optimizers=("sgd", "kfac", "sgd"), models=("mlp", "cnn"), rates=3, seeds=2
        )
    )
    assert not refused
    assert len(jobs) == len({job.name for job in jobs}) == 2 * 2 * 3 * 2
    assert [job.name for job in jobs[:4]] == [
        "sgd_digits-mlp_0_0.0167",
        "sgd_digits-mlp_0_0.05",
        "sgd_digits-mlp_0_0.15",
        "kfac_digits-mlp_0_0.333",
    ]
    assert [job.about["seed"] for job in jobs] == [0] * 12 + [1] * 12
    for job in jobs:
        assert job.directory == tmp_path / "comparison" / "runs" / job.name
    assert not (tmp_path / "comparison").exists()


def test_the_command_of_a_run_says_all_of_it(tmp_path):
    chosen = options(tmp_path, batch_size=32, schedule="cosine", budget_seconds=1.5, rates=1)
    job = optimizer_plan.plan(chosen)[0][2]
    assert job.command[2] == "optimizer"
    assert tyro.cli(OptimizerRun, args=job.command[3:]) == OptimizerRun(
        optimizer="sgd",
        data="digits",
        model="mlp",
        rate=0.05,
        seed=2,
        epochs=1,
        budget_seconds=1.5,
        batch_size=32,
        schedule="cosine",
        output=job.directory,
    )
    assert job.about["command"].endswith(
        "compare.py optimizer sgd digits mlp --rate 0.05 --seed 2 --budget-seconds 1.5 --epochs 1 "
        "--batch-size 32 --schedule cosine"
    )


def test_the_data_are_named_for_every_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = options(tmp_path, data_dir=Path("../data"), models=("linear",), rates=1)
    job = optimizer_plan.plan(chosen)[0][0]
    assert job.command[job.command.index("--data-dir") + 1] == f"{tmp_path}/../data"
    assert f"--data-dir {tmp_path}/../data" in job.about["command"]


def test_a_matrix_over_all_parameters_does_not_apply_to_a_large_model(tmp_path):
    chosen = options(
        tmp_path, optimizers=("newton", "adamw", "sr1"), models=("mlp", "linear"), rates=1, seeds=1
    )
    jobs, refused = optimizer_plan.plan(chosen)
    assert [(refusal.name, refusal.task) for refusal in refused] == [
        ("newton", "digits-mlp"),
        ("sr1", "digits-mlp"),
    ]
    assert all("85002 parameters is too large" in refusal.reason for refusal in refused)
    assert [(job.about["name"], job.about["task"]) for job in jobs] == [
        ("adamw", "digits-mlp"),
        ("newton", "digits-linear"),
        ("adamw", "digits-linear"),
        ("sr1", "digits-linear"),
    ]


def test_all_are_all(tmp_path):
    chosen = options(tmp_path, optimizers=("all",), models=("linear",), rates=1, seeds=1)
    jobs, refused = optimizer_plan.plan(chosen)
    assert [job.about["name"] for job in jobs] == optim.names()
    assert not refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizers": ("sgd", "sdg")}, "no optimizer is named 'sdg'; there are adafactor"),
        ({"optimizers": ()}, "optimizers is empty"),
        ({"models": ()}, "models is empty"),
        ({"rates": 0}, "rates must be at least 1, got 0"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"execution": Execution(jobs=0)}, "jobs must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": None}, "nothing says when a run ends: give --budget-seconds"),
        ({"budget_seconds": 0.0}, "budget_seconds must be positive and finite, got 0"),
        ({"budget_seconds": float("nan")}, "budget_seconds must be positive and finite, got nan"),
        ({"target": {"accuracy": 97.0}}, "target accuracy must be a share from 0 to 1, got 97"),
        ({"target": {"loss": float("nan")}}, "target loss must be finite, got nan"),
        (
            {"target": {"reconstruction_error": 0.1}},
            "target reconstruction_error is measured on none of the models: name loss or accuracy",
        ),
        ({"batch_size": -1}, "batch_size must not be negative, got -1"),
        ({"batch_size": 2000}, "batch_size must be at most the 1,438 training samples"),
        ({"data": ("digits", "fashion-mnist")}, "fashion-mnist needs its files: --data-dir"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(changes, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        optimizer_plan.plan(options(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_a_directory_without_the_data(tmp_path):
    chosen = options(tmp_path, data=("fashion-mnist",), data_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="there is no train-images-idx3-ubyte or"):
        optimizer_plan.plan(chosen)
