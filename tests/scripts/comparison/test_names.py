"""Agents by name."""

import sys

import pytest
import sb3_contrib
import stable_baselines3
from comparison.names import find

import agents
from npg.errors import ConfigurationError


@pytest.mark.parametrize(
    ("name", "kind", "ours", "preset"),
    [
        ("trpo", agents.TRPO, True, "trpo.yml"),
        ("npg", agents.NPG, True, "npg.yml"),
        ("sb3:ppo", stable_baselines3.PPO, False, "rl_zoo_ppo.yml"),
        ("sb3:SAC", stable_baselines3.SAC, False, None),
        ("sb3-contrib:trpo", sb3_contrib.TRPO, False, "rl_zoo_trpo.yml"),
        ("stable_baselines3.ppo:PPO", stable_baselines3.PPO, False, None),
    ],
)
def test_names(name, kind, ours, preset):
    agent = find(name)
    assert agent.kind is kind
    assert agent.ours is ours
    assert (agent.preset_file and agent.preset_file.name) == preset


def test_one_agent_has_one_name():
    """Two would be compared with each other, and share a directory on some disks."""
    assert find("sb3:PPO").name == find("sb3:ppo").name == "sb3:ppo"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpro", r"no agent 'tpro': the names are trpo, npg, .*sb3:ppo.*module:Class"),
        ("sb3:", r"no agent 'sb3:': the names are"),
        ("sb3:trpo", r"no agent 'sb3:trpo': sb3 has .*sb3:ppo"),
        ("nowhere_at_all:PPO", r"No module named 'nowhere_at_all'.*install its package"),
        ("pathlib:Path", r"pathlib has no class Path derived from .*BaseAlgorithm"),
        ("pathlib:Nothing", r"pathlib has no class Nothing"),
    ],
)
def test_names_of_nobody(name, message):
    with pytest.raises(ConfigurationError, match=message):
        find(name)


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)  # as if it could not be found
    with pytest.raises(ConfigurationError, match=r"'sb3-contrib:trpo'.*pip install sb3-contrib"):
        find("sb3-contrib:trpo")


def test_a_class_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "of_a_user.py").write_text(
        "from stable_baselines3 import PPO\nclass Mine(PPO): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert find("of_a_user:Mine").kind.__name__ == "Mine"
