"""train.py end to end, with runs of some hundred steps."""

import dataclasses
import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from common.interrupts import Interrupts
from common.lock import locked
from evaluate import main as evaluate
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train import main
from training import check_agents, command_line, run_directory, session
from training.options import AGENTS, SET_BY_RUN, Options

from agents import TRPO
from npg import checkpoints
from npg.errors import ConfigurationError
from tests.agents.checkpoints import equal_states

ROOT = Path(__file__).parents[2]
TINY = ["--n-steps", "64", "--critic", "gauss-newton", "--eval-episodes", "3"]


def steps_of(directory, column="rollout/ep_rew_mean"):
    rows = run_directory.read_progress(directory)
    return [int(row["time/total_timesteps"]) for row in rows if row[column]]


# ------------------------------------------------------------------------------- run directories


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


# ------------------------------------------------------------------------------------ precedence


@pytest.fixture
def preset(tmp_path):
    file = tmp_path / "preset.yml"
    entry = "{num_envs: 4, hidden_layers: [8, 8], arguments: {n_steps: 99, learning_rate: 1e-4}}"
    file.write_text(f"CartPole-v1: {entry}\nBad-v1: {{speed: 1, arguments: {{}}}}\n")
    return file


def test_command_line_goes_before_preset_goes_before_default(preset):
    words = f"trpo --env CartPole-v1 --preset {preset} --n-steps 77 --no-normalize-advantage"
    agent, options = command_line.parse(words.split())
    assert agent == "trpo"
    assert options.arguments.n_steps == 77
    assert options.arguments.normalize_advantage is False
    assert options.num_envs == 4
    assert options.hidden_layers == (8, 8)
    assert options.arguments.learning_rate == 1e-4  # which YAML 1.1 reads as a string
    assert options.arguments.gamma == 0.99
    assert options.total_timesteps == 100_000


def test_a_preset_may_come_before_or_after_the_environment():
    for words in (
        "--preset --env Walker2d-v5",
        "--env Walker2d-v5 --preset",
        "--env=Walker2d-v5 --preset",
    ):
        _, options = command_line.parse(["trpo", *words.split()])
        assert options.normalize_obs
        assert options.arguments.cg_max_steps == 25


def test_without_preset_the_constructor_decides():
    for agent, kind in AGENTS.items():
        _, options = command_line.parse([agent, "--env", "CartPole-v1"])
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(kind).parameters.items()
            if name not in SET_BY_RUN
        }
        assert vars(options.arguments) == defaults


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--env Nothing-v0 --preset",
            "no preset for Nothing-v0, only for CartPole.*Hopper-v5",
        ),
        ("--env CartPole-v1 --preset missing.yml", "no preset file missing.yml"),
        ("--env CartPole-v1 --total-timesteps 0", "total_timesteps must be at least 1"),
        ("--env CartPole-v1 --eval-freq -1", "eval_freq must not be negative"),
        ("--resume nowhere", "nowhere is not the directory of a run"),
    ],
)
def test_what_cannot_be_is_refused(words, message):
    with pytest.raises(ConfigurationError, match=message):
        command_line.parse(["trpo", *words.split()])


def test_a_preset_with_unknown_names_is_refused(preset):
    with pytest.raises(ConfigurationError, match="unknown speed"):
        command_line.parse(f"trpo --env Bad-v1 --preset {preset}".split())


@pytest.mark.parametrize("agent", AGENTS)
def test_help_is_complete(agent, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.parse([agent, "--help"])
    assert ended.value.code == 0
    # One entry per option: its name, its kind, what it does, its default.
    entries = re.findall(
        r"^\W*--([a-z][\w-]+)(.*?)(?=^\W*--[a-z][\w-]+[ ,]|\Z)",
        capsys.readouterr().out,
        flags=re.DOTALL | re.MULTILINE,
    )
    documentation = {name.replace("-", "_"): text for name, text in entries}
    parameters = set(inspect.signature(AGENTS[agent]).parameters) - SET_BY_RUN
    options = {field.name for field in dataclasses.fields(Options)} - {"arguments"}
    assert set(documentation) == parameters | options
    for name, text in documentation.items():
        described = re.sub(r"\((default|required).*", "", text, flags=re.DOTALL)
        assert len(re.findall(r"[a-z]{2,}", described)) >= 2, name


def test_policy_options_reach_the_policy(tmp_path):
    words = f"trpo --env Pendulum-v1 --track-dir {tmp_path} --hidden-layers 5 7 --activation relu"
    agent, options = command_line.parse(
        [*words.split(), "--log-std-init", "-1", "--kl-reduction", "joint", *TINY]
    )
    policy = session.start(agent, options).model.policy
    sizes = [layer.out_features for layer in policy.mlp_extractor.policy_net[::2]]
    assert sizes == [5, 7]
    assert "ReLU" in str(policy.mlp_extractor)
    assert policy.log_std.item() == -1


# ---------------------------------------------------------------------------------------- resume


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


# -------------------------------------------------------------------------------- ends and faults


class Spoiled(gym.Wrapper):
    """CartPole whose reward is not a number from the 150th step on."""

    count = 0

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.count += 1
        return obs, (reward if self.count < 150 else float("nan")), *rest


class Broken(gym.Wrapper):
    def step(self, action):
        raise ZeroDivisionError("a bug of the environment")


@pytest.fixture
def environments():
    for name, wrapper in {"Spoiled-v0": Spoiled, "Broken-v0": Broken}.items():
        gym.register(name, lambda wrapper=wrapper: wrapper(gym.make("CartPole-v1")))
    yield
    for name in ("Spoiled-v0", "Broken-v0"):
        del gym.registry[name]


def test_numerical_error_saves_and_exits_with_1(environments, tmp_path, capsys):
    words = f"trpo --env Spoiled-v0 --track-dir {tmp_path} --total-timesteps 1000"
    assert main([*words.split(), *TINY]) == 1
    error = capsys.readouterr().err
    checkpoint = tmp_path / "trpo_Spoiled-v0_1" / "last_model.zip"
    assert "reward" in error
    assert "not finite" in error
    assert str(checkpoint) in error
    assert "Traceback" not in error
    assert TRPO.load(checkpoint).num_timesteps == 128  # that it was trained on


def test_an_environment_that_raises_keeps_its_traceback(environments, tmp_path):
    words = f"trpo --env Broken-v0 --track-dir {tmp_path}"
    with pytest.raises(ZeroDivisionError):
        main([*words.split(), *TINY])
    assert (tmp_path / "trpo_Broken-v0_1" / "last_model.zip").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--env Nothing-v0", "Nothing-v0"),
        ("--env CartPole-v1 --target-kl -1", "target_kl"),
        ("--env CartPole-v1 --num-envs 0", "num_envs"),
        ("--env CartPole-v1 --use-sde", "SDE"),
        ("--env FrozenLake-v1 --normalize-obs", "normalize_obs"),
    ],
)
def test_configuration_error_exits_with_2_and_leaves_nothing(words, message, tmp_path, capsys):
    assert main(["trpo", *words.split(), "--track-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_missing_mujoco_names_the_extra(monkeypatch, tmp_path, capsys):
    def missing(*_, **__):
        raise gym.error.DependencyNotInstalled("MuJoCo is not installed")

    monkeypatch.setattr(session, "make", missing)
    assert main(["trpo", "--env", "Hopper-v5", "--track-dir", str(tmp_path)]) == 2
    assert "pip install .[mujoco]" in capsys.readouterr().err


def test_the_other_package_called_agents_is_recognised(capsys):
    other = types.ModuleType("agents")
    other.__file__ = "/site-packages/agents/__init__.py"
    with pytest.raises(SystemExit) as ended:
        check_agents(other)
    assert ended.value.code == 2
    assert "unrelated" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits(stop, tmp_path):
    words = f"trpo --env CartPole-v1 --track-dir {tmp_path} --total-timesteps 100000000"
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts/train.py", *words.split(), "--n-steps", "64"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    progress = tmp_path / "trpo_CartPole-v1_1" / "progress.csv"
    deadline = time.monotonic() + 60
    while not (progress.is_file() and progress.read_text().count("\n") > 2):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(stop)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 128 + stop
    assert "Traceback" not in error
    assert f"--resume {progress.parent}" in output
    ended = TRPO.load(progress.parent / "last_model.zip")
    assert ended.num_timesteps % 64 == 0  # between an update and the next rollout
    assert ended._n_updates == ended.num_timesteps / 64 >= 2


@pytest.mark.usefixtures("default_interrupts")
def test_a_second_signal_does_what_it_always_does():
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
