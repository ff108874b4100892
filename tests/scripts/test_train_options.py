"""What train.py makes of its command line: options, presets, defaults, help."""

import dataclasses
import inspect
import re

import pytest
from training import command_line, session
from training.options import AGENTS, SET_BY_RUN, Options

from npg.errors import ConfigurationError
from tests.scripts.trained import TINY


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
