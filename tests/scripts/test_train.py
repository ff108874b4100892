"""train.py end to end, with runs of some hundred steps: what a run leaves."""

import re

import numpy as np
import yaml
from train import main
from training import run_directory

from agents import TRPO
from tests.scripts.trained import TINY, steps_of


def test_a_run_leaves_everything_in_its_directory(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    assert names >= {
        "config.yml",
        "progress.csv",
        "evaluations.npz",
        "best_model.zip",
        "last_model.zip",
        "learning_curve.png",
    }
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not any(name.endswith(".tmp") for name in names)

    assert steps_of(finished_run) == [128, 256]
    evaluations = np.load(finished_run / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [100, 200, 256]  # every 100, and the final policy
    assert evaluations["results"].shape == evaluations["ep_lengths"].shape == (3, 3)
    assert (finished_run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert TRPO.load(finished_run / "last_model.zip").num_timesteps == 256


def test_config_is_fully_resolved(finished_run):
    config = yaml.safe_load((finished_run / "config.yml").read_text())
    assert config["agent"] == "trpo"
    assert config["options"]["env"] == "CartPole-v1"
    assert config["options"]["arguments"]["n_steps"] == 64
    assert config["options"]["arguments"]["target_kl"] == 0.01  # the constructor's default
    assert {"python", "torch", "gymnasium", "stable-baselines3"} <= set(config["versions"])


def test_directories_are_numbered(tmp_path):
    names = [run_directory.create(tmp_path, "trpo", "ALE/Pong-v5").name for _ in range(3)]
    assert names == [f"trpo_ALE-Pong-v5_{n}" for n in (1, 2, 3)]


def test_the_summary_names_what_can_be_done_next(tmp_path, capsys):
    words = f"npg --env CartPole-v1 --track-dir {tmp_path} --total-timesteps 64 --num-envs 1"
    assert main([*words.split(), *TINY]) == 0
    output = capsys.readouterr().out
    directory = tmp_path / "npg_CartPole-v1_1"
    assert f"tensorboard --logdir {directory}" in output
    assert str(directory / "learning_curve.png") in output
    assert str(directory / "best_model.zip") in output
    assert re.search(rf"python .*evaluate\.py {re.escape(str(directory))} --episodes 20", output)


def test_training_stops_at_the_wanted_return(tmp_path):
    words = f"trpo --env CartPole-v1 --track-dir {tmp_path} --total-timesteps 100000 --stop-at 5"
    assert main([*words.split(), "--eval-freq", "96", *TINY]) == 0
    directory = tmp_path / "trpo_CartPole-v1_1"
    assert np.load(directory / "evaluations.npz")["timesteps"].tolist() == [96]
    assert TRPO.load(directory / "last_model.zip").num_timesteps == 96
