"""What train.py says and saves where a run cannot go on: errors of all kinds, and signals."""

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import gymnasium as gym
import pytest
from common.interrupts import Interrupts
from train import main
from training import check_agents, session

from agents import TRPO
from tests.scripts.trained import TINY

ROOT = Path(__file__).parents[2]


class Spoiled(gym.Wrapper):
    """CartPole whose reward is not a number from the 150th step on."""

    count = 0

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.count += 1
        return obs, (reward if self.count < 150 else float("nan")), *rest


class Interrupted(gym.Wrapper):
    """CartPole in whose 150th step somebody presses Ctrl-C."""

    count = 0

    def step(self, action):
        self.count += 1
        if self.count == 150:
            signal.raise_signal(signal.SIGINT)
        return self.env.step(action)


class Broken(gym.Wrapper):
    def step(self, action):
        raise ZeroDivisionError("a bug of the environment")


@pytest.fixture
def environments():
    wrappers = {"Spoiled-v0": Spoiled, "Interrupted-v0": Interrupted, "Broken-v0": Broken}
    for name, wrapper in wrappers.items():
        gym.register(name, lambda wrapper=wrapper: wrapper(gym.make("CartPole-v1")))
    yield
    for name in wrappers:
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


@pytest.mark.usefixtures("environments", "default_interrupts")
def test_ctrl_c_saves_and_exits(tmp_path, capsys):
    words = f"trpo --env Interrupted-v0 --track-dir {tmp_path} --num-envs 1"
    assert main([*words.split(), *TINY]) == 128 + signal.SIGINT
    directory = tmp_path / "trpo_Interrupted-v0_1"
    assert f"--resume {directory}" in capsys.readouterr().out
    ended = TRPO.load(directory / "last_model.zip")
    assert ended.num_timesteps % 64 == 0  # between an update and the next rollout
    assert ended._n_updates == ended.num_timesteps / 64 >= 2


def test_a_signal_saves_and_exits(tmp_path):
    """As a scheduler ends a job, at any moment."""
    stop = signal.SIGTERM
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
