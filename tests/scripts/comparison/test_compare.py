"""compare.py from the command line."""

import json
import re
import shlex
import sys

import compare
import gymnasium as gym
import pytest
from compare import main
from comparison import record, session
from comparison.execution_options import Execution

from tests.scripts.comparison import fake

CRASHING = '''
"""CartPole that breaks in one seed."""

import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv


class Crashing(CartPoleEnv):
    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.seed, self.steps = seed, 0
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.steps += 1
        if self.seed == 1 and self.steps == 100:
            raise RuntimeError("the simulator broke at step 100")
        return super().step(action)


gym.register("Crashing-v0", entry_point=Crashing, max_episode_steps=50)
'''


def words(output, *more, agents="trpo", envs="CartPole-v1"):
    said = f"agents --envs {envs} --agents {agents} --output {output}"
    return [*said.split(), *map(str, more)]


def test_an_environment_that_breaks_in_one_seed(tmp_path, monkeypatch, capsys):
    """One run is recorded as failed, the other one is as it should be."""
    (tmp_path / "crashing.py").write_text(CRASHING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    written = []  # drawing takes long, and is tested elsewhere
    monkeypatch.setattr(session, "write_page", lambda path: written.append(path) or path)
    preset = tmp_path / "tiny.yml"
    preset.write_text("crashing:Crashing-v0: {arguments: {n_steps: 64}}\n")
    output = tmp_path / "report"
    arguments = words(output, "--total-timesteps", 128, "--preset", preset, "--jobs", 2,
                      envs="crashing:Crashing-v0")  # fmt: skip
    assert main([*arguments, "--seeds", "2"]) == 1
    whole, broken = (
        json.loads((output / "runs" / f"trpo_crashing-Crashing-v0_{seed}/result.json").read_text())
        for seed in range(2)
    )
    assert (whole["status"], whole["steps"], len(whole["final"])) == ("finished", 128, 20)
    assert broken["status"] == "failed"
    assert "RuntimeError: the simulator broke at step 100" in broken["error"]
    assert broken["command"].endswith(
        "compare.py agent trpo crashing:Crashing-v0 --seed 1 --total-timesteps 128 "
        f"--preset {preset}"
    )
    text = capsys.readouterr().out
    assert "trpo_crashing-Crashing-v0_1 failed" in text
    assert "--retry-failed" in text
    record = json.loads((output / "comparison.json").read_text())
    assert record["planned"] == [f"trpo_crashing-Crashing-v0_{seed}" for seed in range(2)]
    assert record["wall_clock_counts"] is (record["machine"]["cores"] >= 2)
    assert written == [output]


def test_the_page_of_a_failed_run(tmp_path, capsys):
    record.begin(
        tmp_path, "agent", "command", Execution(), {"steps": 100}, ["fake_task_0", "fake_task_1"]
    )
    fake.run([fake.job(tmp_path, 1, "raise ValueError('the simulator broke')")])
    assert main(["report", str(tmp_path)]) == 0
    assert str(tmp_path / "report.html") in "".join(capsys.readouterr().out.split())
    text = (tmp_path / "report.html").read_text()
    assert "the simulator broke" in text
    assert "fake_task_0" in text  # which is missing


def test_a_page_of_what_is_no_comparison(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no comparison" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--jobs", "0"], "jobs must be at least 1, got 0"),
        (["--jobs", "-1"], "jobs must be at least 1, got -1"),
        (["--total-timesteps", "0"], "total_timesteps must be at least 1"),
        (["--agents", "trpo", "sb3:tpro"], "there is no agent 'sb3:tpro': sb3 has"),
        (["--agents"], "agents is empty"),
        (["--agents", "nowhere_at_all:PPO"], "No module named 'nowhere_at_all'"),
        (["--envs", "CartPole-v1", "Carpole-v1"], "there is no environment 'Carpole-v1'"),
        (["--envs", "Carpole-v1"], "mend the id in --envs, or write 'package:id'"),
        (["--envs", "CartPole-v9"], "Environment version `v9` for environment `CartPole`"),
        (["--envs", "Cart Pole"], "Malformed environment ID: Cart Pole"),
        (["--envs", "nowhere_at_all:X-v0"], "there is no environment 'nowhere_at_all:X-v0'"),
        (["--preset", "nowhere.yml"], "no preset file"),
        (["--agents", "sb3:ppo", "--preset", "rl_zoo_trpo.yml"], "sb3:ppo does not take"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(tmp_path, capsys, more, message):
    output = tmp_path / "report"
    assert main([*words(output), *more]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not output.exists()


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("{num_envz: 2}", "CartPole-v1: unknown num_envz"),
        ("{arguments: {n_stepz: 2}}", "CartPole-v1: trpo does not take n_stepz"),
        ("5", "CartPole-v1 must name settings and their values"),
        ("{arguments: 5}", "CartPole-v1 must name settings and their values"),
        ("[1, 2", "is not YAML"),
    ],
)
def test_a_preset_file_that_says_something_else(tmp_path, capsys, preset, message):
    (tmp_path / "mine.yml").write_text(f"CartPole-v1: {preset}")
    assert main(words(tmp_path / "report", "--preset", tmp_path / "mine.yml")) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert str(tmp_path / "mine.yml") in said or "mine.yml, CartPole-v1" in said
    assert not (tmp_path / "report").exists()


def test_simulators_that_are_not_installed(tmp_path, capsys, monkeypatch):
    def make(env_id):
        raise gym.error.DependencyNotInstalled("MuJoCo is not installed")

    monkeypatch.setattr(gym, "make", make)
    assert main(words(tmp_path / "report", envs="Hopper-v5")) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said == "error: MuJoCo is not installed; here: pip install .[mujoco]"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_that_is_a_file(tmp_path, capsys, place):
    (tmp_path / "file").write_text("kept")
    assert main(words(tmp_path / place)) == 2
    assert "cannot be written to" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


def test_a_second_comparison_in_the_directory(tmp_path, capsys):
    from common.lock import locked

    with locked(tmp_path):
        assert main(words(tmp_path)) == 2
    assert "another comparison" in capsys.readouterr().err
    assert not (tmp_path / "comparison.json").exists()


def test_an_agent_without_a_preset_is_named(tmp_path, capsys):
    from comparison.agents import plan
    from comparison.options import Agents

    jobs = plan(Agents(("CartPole-v1",), ("sb3:dqn", "npg", "npg"), seeds=2, output=tmp_path))
    assert [job.name for job in jobs] == [
        "sb3-dqn_CartPole-v1_0",
        "npg_CartPole-v1_0",
        "sb3-dqn_CartPole-v1_1",
        "npg_CartPole-v1_1",
    ]
    notes = capsys.readouterr().err.splitlines()
    assert notes[0] == "note: sb3:dqn has no preset for CartPole-v1: it runs with its defaults"
    assert len(notes) == 1  # npg has one


def test_every_agent_with_the_budget_of_its_preset(tmp_path):
    from comparison.agents import plan
    from comparison.options import Agents

    agents = ("trpo", "sb3:a2c")
    jobs = plan(Agents(("CartPole-v1",), agents, 1, total_timesteps="preset", output=tmp_path))
    ends = [" ".join(job.command).split(" --output")[0] for job in jobs]
    assert ends[0].endswith("agent trpo CartPole-v1 --seed 0 --total-timesteps 100000")
    assert ends[1].endswith("agent sb3:a2c CartPole-v1 --seed 0 --total-timesteps 500000")


def test_a_preset_without_a_budget(tmp_path, capsys):
    said = words(tmp_path / "report", "--total-timesteps", "preset", agents="sb3:dqn")
    assert main(said) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "total_timesteps=preset: sb3:dqn has no preset with a budget for CartPole-v1" in message


def test_a_file_of_settings_goes_along_to_other_machines(tmp_path):
    from comparison.agents import plan
    from comparison.options import Agents

    preset = tmp_path / "mine.yml"
    preset.write_text("CartPole-v1: {arguments: {n_steps: 64}}\n")
    for given, inputs in ((str(preset), [str(preset)]), ("trpo.yml", []), (None, [])):
        (job,) = plan(Agents(("CartPole-v1",), ("trpo",), seeds=1, preset=given))
        assert job.inputs == inputs
        assert set(inputs) <= set(job.command)


def test_the_examples_of_the_help_can_be_pasted(capsys, monkeypatch):
    """One of each subcommand that is typed by hand; parsed as a shell hands them over."""
    with pytest.raises(SystemExit):
        main(["--help"])
    taken = []
    monkeypatch.setattr(compare, "_run", lambda options: taken.append(type(options)) or 0)
    examples = r"^ +python scripts/compare\.py ((?:.*\\\n)*.*)"
    for example in re.findall(examples, capsys.readouterr().out, re.MULTILINE):
        assert not any("  " in line.strip() for line in example.splitlines())
        assert main(shlex.split(example.replace("\\\n", ""))) == 0
    everyday = ("agents", "optimizers", "report", "repeat", "digest", "runs")
    assert taken == [compare.SUBCOMMANDS[name][0] for name in everyday]
