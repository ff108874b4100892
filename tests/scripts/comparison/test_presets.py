"""Settings of runs, and whether rl-zoo's are rl-zoo's."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from comparison.names import find
from comparison.presets import preset_for
from stable_baselines3 import PPO
from torch import nn
from training.command_line import PRESETS

from npg.errors import ConfigurationError

ENVIRONMENTS = [
    "CartPole-v1",
    "Acrobot-v1",
    "Pendulum-v1",
    "MountainCarContinuous-v0",
    "Hopper-v5",
    "HalfCheetah-v5",
    "Walker2d-v5",
]
PEERS = {"trpo": "sb3-contrib:trpo", "a2c": "sb3:a2c", "ppo": "sb3:ppo"}


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_values_are_those_of_rl_zoo(name, env_id):
    """Read from the installed package, where it is."""
    package = importlib.util.find_spec("rl_zoo3")
    if package is None:
        pytest.skip("rl_zoo3 is not installed")
    file = Path(package.origin).parent / "hyperparams" / f"{name}.yml"
    theirs = yaml.safe_load(file.read_text())[env_id.replace("-v5", "-v4")]
    normalize = theirs.pop("normalize", False)
    steps = theirs.pop("n_timesteps")
    assert theirs.pop("policy") == "MlpPolicy"
    code = theirs.pop("policy_kwargs", "dict()")
    preset = preset_for(find(PEERS[name]), env_id)
    assert preset.file == f"rl_zoo_{name}.yml"
    assert (preset.normalize_obs, preset.normalize_reward) == (normalize, normalize)
    assert preset.num_envs == theirs.pop("n_envs", 1)
    assert {k: _number(v) for k, v in preset.arguments.items()} == {
        k: _number(v) for k, v in theirs.items()
    }
    policy = eval(code, {"dict": dict, "nn": nn})
    both = policy.get("net_arch")
    if both:
        assert both["pi"] == both["vf"]
        policy["net_arch"] = both["pi"]
    assert preset.policy_kwargs == policy
    written = yaml.safe_load((PRESETS / preset.file).read_text())[env_id]
    assert written["total_timesteps"] == steps


def _number(value):
    return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.e-]+", value) else value


def test_numbers_that_fall_to_zero():
    arguments = preset_for(find("sb3:ppo"), "CartPole-v1").constructor_arguments()
    rate, clip = arguments["learning_rate"], arguments["clip_range"]
    assert [rate(share) for share in (1.0, 0.5, 0.0)] == pytest.approx([1e-3, 5e-4, 0])
    assert [clip(share) for share in (1.0, 0.5, 0.0)] == pytest.approx([0.2, 0.1, 0])


def test_no_preset_means_the_defaults_of_the_class():
    preset = preset_for(find("sb3:ppo"), "MountainCar-v0")
    assert preset.file is None
    assert preset.constructor_arguments() == {}
    assert preset.num_envs == 1
    recorded = preset.recorded(find("sb3:ppo"))
    assert recorded["n_steps"] == PPO("MlpPolicy", "CartPole-v1").n_steps
    assert recorded["policy_kwargs"] == {}


def test_what_is_recorded():
    agent = find("sb3:ppo")
    recorded = preset_for(agent, "Hopper-v5").recorded(agent)
    assert recorded["policy_kwargs"] == {
        "net_arch": [256, 256],
        "activation_fn": "ReLU",
        "log_std_init": -2,
        "ortho_init": False,
    }
    assert recorded["gamma"] == 0.999
    assert recorded["target_kl"] is None  # a default
    assert preset_for(agent, "CartPole-v1").recorded(agent)["learning_rate"] == "lin_0.001"


def test_what_is_recorded_is_what_the_file_has():
    """Stable-Baselines3's A2C adds its optimizer to the policy's arguments."""
    agent = find("sb3:a2c")
    preset = preset_for(agent, "MountainCarContinuous-v0")
    before = preset.recorded(agent)
    agent.kind("MlpPolicy", "MountainCarContinuous-v0", **preset.constructor_arguments())
    assert preset.recorded(agent) == before


def test_a_preset_file_goes_by_its_stem():
    assert preset_for(find("sb3:ppo"), "CartPole-v1", "rl_zoo_ppo").file == "rl_zoo_ppo.yml"
    with pytest.raises(ConfigurationError, match=r"one of a2c, acktr, .*, rl_zoo_a2c, .*, trpo"):
        preset_for(find("sb3:ppo"), "CartPole-v1", "pro")


def test_a_preset_for_both_sides():
    ours = preset_for(find("trpo"), "HalfCheetah-v5", "rl_zoo_trpo.yml")
    theirs = preset_for(find("sb3-contrib:trpo"), "HalfCheetah-v5", "rl_zoo_trpo.yml")
    assert ours == theirs
    assert ours.arguments["target_kl"] == 0.04


@pytest.mark.parametrize(
    ("agent", "env_id", "file", "message"),
    [
        ("sb3:ppo", "CartPole-v1", "rl_zoo_trpo.yml", r"sb3:ppo does not take cg_damping"),
        ("trpo", "MountainCar-v0", "trpo.yml", r"no preset for MountainCar-v0, only for CartPole"),
        ("trpo", "CartPole-v1", "nowhere.yml", r"no preset file .*nowhere.yml"),
    ],
)
def test_presets_that_do_not_fit(agent, env_id, file, message):
    with pytest.raises(ConfigurationError, match=message):
        preset_for(find(agent), env_id, file)


def preset_with_budget(tmp_path, budget):
    file = tmp_path / "mine.yml"
    file.write_text(f"CartPole-v1: {{total_timesteps: {budget}}}\n")
    return preset_for(find("trpo"), "CartPole-v1", str(file))


@pytest.mark.parametrize(
    ("written", "steps"),
    [
        *[("1e5", 100_000), ("1.0e+5", 100_000), ("2.5e3", 2500), ("'300'", 300)],
        *[("5000.0", 5000), ("1_000", 1000), ("1", 1), ("", None), ("null", None)],
    ],
)
def test_a_budget_is_a_whole_number_however_yaml_reads_it(tmp_path, written, steps):
    budget = preset_with_budget(tmp_path, written).total_timesteps
    assert (budget, type(budget)) == (steps, type(steps))


@pytest.mark.parametrize(
    "written",
    ["true", "0", "-3", "abc", "1000.5", "'1000.5'", ".inf", ".nan", "'nan'", "[1000]", "{a: 1}"],
)
def test_what_is_no_budget(tmp_path, written):
    message = r"mine\.yml, CartPole-v1: total_timesteps must be .*, got .*: write .*leave tot"
    with pytest.raises(ConfigurationError, match=message):
        preset_with_budget(tmp_path, written)
