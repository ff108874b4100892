"""train.py --resume goes on with a run as if it had not ended."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from common.lock import locked
from evaluate import main as evaluate
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train import main
from training import command_line, run_directory, session

from agents import TRPO
from npg import checkpoints
from tests.agents.checkpoints import equal_states
from tests.scripts.trained import TINY, steps_of


@pytest.fixture
def run(finished_run, tmp_path):
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))


def test_resume_continues_counters_and_logs(run):
    before = TRPO.load(run / "last_model.zip")
    words = f"trpo --resume {run} --total-timesteps 512"
    assert main(words.split()) == 0
    after = TRPO.load(run / "last_model.zip")
    assert after.num_timesteps == 512
    assert after._n_updates == 2 * before._n_updates
    assert steps_of(run) == [128, 256, 384, 512]
    evaluations = np.load(run / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [100, 200, 256, 300, 400, 500, 512]
    events = EventAccumulator(str(run)).Reload()
    assert [event.step for event in events.Scalars("rollout/ep_rew_mean")] == [128, 256, 384, 512]
    assert run_directory.read_config(run)["options"]["total_timesteps"] == 512


def test_resume_without_the_environments_state_begins_new_episodes(run, capsys):
    agent, options = command_line.parse(f"trpo --resume {run} --total-timesteps 512".split())
    TRPO.load(run / "last_model.zip").save(run / "last_model.zip")
    stored = TRPO.load(run / "last_model.zip").training_optim_state.normaliser
    resumed = session.start(agent, options)
    normaliser = resumed.model.get_vec_normalize_env()
    count = float(stored["obs_rms"]["observation"]["count"])
    assert normaliser.obs_rms.count == count > 256
    seeds = resumed.model.get_env().unwrapped._seeds
    assert seeds[0] not in (None, options.seed)
    assert "note: episodes begin anew, since the checkpoint was saved without" in (
        capsys.readouterr().err
    )


def test_a_run_of_an_earlier_version_goes_on(run, tmp_path, capsys):
    """Its checkpoints are what Stable-Baselines3's own save wrote."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    for name in ("best_model.zip", "last_model.zip"):
        model = TRPO.load(run / name)
        model.save(other / name)
        OnPolicyAlgorithm.save(model, run / name)
    assert evaluate([str(run), "--episodes", "2"]) == 0
    for directory in (run, other):
        assert main(f"trpo --resume {directory} --total-timesteps 512".split()) == 0
        assert "note: episodes begin anew" in capsys.readouterr().err
    ours, theirs = (checkpoints.read(d / "last_model.zip")["states"] for d in (run, other))
    assert equal_states(ours, theirs)
    assert steps_of(run) == steps_of(other) == [128, 256, 384, 512]


def test_two_processes_do_not_write_into_one_directory(run, capsys):
    before = (run / "progress.csv").read_bytes()
    with locked(run):
        assert main(f"trpo --resume {run} --total-timesteps 512".split()) == 2
    assert f"another run (process {os.getpid()}) writes into {run}" in capsys.readouterr().err
    assert (run / "progress.csv").read_bytes() == before
    assert main(f"trpo --resume {run} --total-timesteps 512".split()) == 0


@pytest.mark.parametrize("torn", ["time/total_tim", "a,b\n1,2\n", ""])
def test_a_torn_progress_file_is_begun_anew(run, torn):
    (run / "progress.csv").write_text(torn)
    assert main(f"trpo --resume {run} --total-timesteps 512".split()) == 0
    assert steps_of(run) == [384, 512]


@pytest.mark.parametrize("killed", ["after its checkpoint", "before its first one"])
def test_a_resumed_run_is_the_uninterrupted_one(run, tmp_path, killed, capsys):
    (run / ".last_model.zip.99999.tmp").write_bytes(b"half")
    if killed == "before its first one":
        for path in run.iterdir():
            if path.name != "config.yml":
                path.unlink()
        (run / "progress.csv").touch()
    assert main(f"trpo --resume {run} --total-timesteps 512".split()) == 0
    assert ("the run begins anew" in capsys.readouterr().err) == (killed == "before its first one")
    whole = tmp_path / "whole"
    words = f"trpo --env CartPole-v1 --track-dir {whole} --num-envs 2 --total-timesteps 512"
    words += " --normalize-obs --normalize-reward --eval-freq 100 --seed 3"
    assert main([*words.split(), *TINY]) == 0
    whole /= "trpo_CartPole-v1_1"
    ours, theirs = (checkpoints.read(d / "last_model.zip")["states"] for d in (run, whole))
    assert equal_states(ours, theirs)
    assert steps_of(run) == steps_of(whole)
    assert not list(run.glob(".*.tmp"))


def test_a_trained_run_without_a_checkpoint_is_left_alone(run, capsys):
    (run / "last_model.zip").unlink()
    for left in ("best_model.zip", "evaluations.npz", "progress.csv"):
        before = {path.name: path.read_bytes() for path in run.iterdir() if path.name != ".lock"}
        assert main(f"trpo --resume {run} --total-timesteps 512".split()) == 2
        said = capsys.readouterr().err
        assert re.search(rf"no last_model.zip to go on from, and .*overwrite its .*{left}", said)
        assert "start a new run without --resume" in said
        after = {path.name: path.read_bytes() for path in run.iterdir() if path.name != ".lock"}
        assert after == before
        (run / left).unlink()
    assert main(f"trpo --resume {run} --total-timesteps 256".split()) == 0


def test_resume_drops_what_came_after_the_checkpoint(run):
    """A killed process has logged more than it saved."""
    saved = (run / "last_model.zip").read_bytes()
    assert main(f"trpo --resume {run} --total-timesteps 512".split()) == 0
    (run / "last_model.zip").write_bytes(saved)
    assert main(f"trpo --resume {run} --total-timesteps 384".split()) == 0
    assert steps_of(run) == [128, 256, 384]
    evaluations = np.load(run / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [100, 200, 256, 300, 384]
    events = EventAccumulator(str(run)).Reload()
    assert [event.step for event in events.Scalars("rollout/ep_rew_mean")] == [128, 256, 384]


def test_resume_twice_from_one_checkpoint_gives_the_same_parameters(run, tmp_path):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    for directory in (run, other):
        assert main(f"trpo --resume {directory} --total-timesteps 384".split()) == 0
    ours, theirs = (checkpoints.read(d / "last_model.zip")["states"] for d in (run, other))
    assert equal_states(ours, theirs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trpo --resume RUN", "has done 256 of 256 steps"),
        ("trpo --resume RUN --n-steps 32 --num-envs 1", "num_envs, n_steps differ"),
        ("npg --resume RUN", "is a run of trpo, not of npg"),
    ],
)
def test_resume_refuses_another_run(run, words, message, capsys):
    assert main(words.replace("RUN", str(run)).split()) == 2
    assert re.search(message, capsys.readouterr().err)
