"""One run: curve, diagnostics, evaluation, against what others log and play."""

import csv
import json

import gymnasium as gym
import numpy as np
import pytest
from comparison import agent_run
from comparison.names import find
from comparison.options import AgentRun
from comparison.presets import Preset, preset_for
from comparison.recorder import Recorder
from stable_baselines3.common.logger import configure

TINY = {"n_steps": 64, "gamma": 0.9}


def built(name, **preset):
    return agent_run.build(find(name), "CartPole-v1", 3, Preset(arguments=TINY, **preset))


@pytest.fixture
def tiny(tmp_path):
    """A preset file for runs of a moment."""
    file = tmp_path / "tiny.yml"
    file.write_text(
        "CartPole-v1: {num_envs: 2, normalize_obs: true, arguments: {n_steps: 64}}\n"
        "Pendulum-v1: {arguments: {n_steps: 64}}\n"
    )
    return str(file)


@pytest.mark.parametrize("name", ["trpo", "acktr", "sb3:ppo", "sb3-contrib:trpo"])
def test_result(name, tiny, tmp_path, capsys):
    output = tmp_path / "run"
    options = AgentRun(name, "CartPole-v1", 1, 256, tiny, output)
    assert agent_run.run(options) == 0
    assert [path.name for path in output.iterdir()] == ["result.json"]
    result = json.loads((output / "result.json").read_text())
    assert (result["kind"], result["name"], result["task"]) == ("agent", name, "CartPole-v1")
    assert (result["status"], result["steps"], result["num_envs"]) == ("finished", 256, 2)
    assert result["threads"] == 1
    assert result["arguments"]["n_steps"] == 64
    assert result["preset"] == "tiny.yml"
    assert len(result["final"]) == 20
    assert [point[0] for point in result["curve"]] == [128, 256]
    diagnostics = result["diagnostics"]
    assert [steps for steps, _ in diagnostics["kl"]] == [128, 256]
    assert diagnostics["kl_bound"] == (
        None if name == "sb3:ppo" else result["arguments"]["target_kl"]
    )
    assert result["command"].endswith(
        f"compare.py agent {name} CartPole-v1 --seed 1 --total-timesteps 256 --preset {tiny}"
    )

    # The command repeats the run, and writes nothing without being told where.
    options.output = None
    assert agent_run.run(options) == 0
    assert f"deterministic episodes: {np.mean(result['final']):,.3f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("trpo", {"kl": "kl_divergence_loss", "cg_residual": "cg_residual",
                  "accepted_step": "step_fraction", "target_kl": "target_kl"}),
        ("sb3-contrib:trpo", {"kl": "kl_divergence_loss",
                              "accepted_step": "is_line_search_success"}),
        ("sb3:ppo", {"kl": "approx_kl"}),
        ("acktr", {"kl": "kl_divergence"}),
    ],
)  # fmt: skip
def test_diagnostics_are_what_the_agent_logs(name, keys, tmp_path):
    """As Stable-Baselines3 writes it to its own CSV file."""
    model = built(name)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    recorder = Recorder(every=1)
    model.learn(4 * 64, callback=recorder, log_interval=1)
    model.logger.dump(step=model.num_timesteps)
    with open(tmp_path / "progress.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/explained_variance"]]
    diagnostics = recorder.diagnostics()
    assert set(diagnostics) == {"kl_bound", "explained_variance", *keys}
    for diagnostic, key in {"explained_variance": "explained_variance", **keys}.items():
        logged = [float(row[f"train/{key}"]) for row in rows]
        steps, values = zip(*diagnostics[diagnostic], strict=True)
        assert steps == (64, 128, 192, 256)
        assert values == pytest.approx(logged, rel=1e-5)


def test_the_curve_is_thinned_and_ends_at_the_end():
    model = built("sb3:a2c")
    recorder = Recorder(every=100)
    model.learn(5 * 64, callback=recorder)
    assert [point[0] for point in recorder.curve] == [128, 256, 320]
    last = np.mean([episode["r"] for episode in model.ep_info_buffer])
    assert recorder.curve[-1][2] == pytest.approx(last, abs=0.005)


def test_progress_is_told(tmp_path):
    model = built("sb3:a2c")
    recorder = Recorder(every=100, progress=tmp_path / "progress.json")
    model.learn(64, callback=recorder)
    told = json.loads((tmp_path / "progress.json").read_text())
    assert told.keys() == {"steps", "seconds", "score"}
    assert told["steps"] == 1  # the next one would be due after a second


@pytest.mark.parametrize("name", ["trpo", "sb3:ppo"])
@pytest.mark.parametrize("normalize", [False, True])
def test_evaluation(name, normalize):
    """Played by hand, observations normalised by the statistics of the training."""
    model = built(name, normalize_obs=normalize, normalize_reward=normalize)
    model.learn(128)
    returns = []
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=3 + 1000)
    while len(returns) < 3:
        total, over = 0.0, False
        while not over:
            if normalize:
                statistics = model.get_vec_normalize_env().obs_rms
                deviation = np.sqrt(statistics.var + 1e-8)
                observation = np.clip((observation - statistics.mean) / deviation, -10, 10)
            action, _ = model.predict(observation.astype(np.float32), deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(int(action))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
        observation, _ = env.reset()
    assert agent_run.evaluate(model, "CartPole-v1", 3, episodes=3) == returns


def test_environments_without_a_preset_of_ours():
    model = agent_run.build(
        find("sb3:ppo"), "MountainCar-v0", 0, preset_for(find("sb3:ppo"), "MountainCar-v0")
    )
    assert model.n_envs == 1
    assert model.get_vec_normalize_env() is None


@pytest.mark.parametrize(
    ("name", "steps"), [("sb3:dqn", 300), ("sb3-contrib:recurrentppo", 64), ("sb3-contrib:ars", 0)]
)
def test_peers_of_other_kinds(name, steps, tmp_path):
    """Off-policy, recurrent, and without gradients: there is a curve and an evaluation of each."""
    file = tmp_path / "tiny.yml"
    arguments = {
        "sb3:dqn": "learning_starts: 50",
        "sb3-contrib:recurrentppo": "n_steps: 64, n_epochs: 1",
    }
    file.write_text(f"CartPole-v1: {{arguments: {{{arguments.get(name, 'n_delta: 2')}}}}}\n")
    options = AgentRun(name, "CartPole-v1", 0, steps or 200, str(file), tmp_path / "run")
    assert agent_run.run(options) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == (steps or result["steps"])
    assert result["curve"][-1][0] == result["steps"]
    assert len(result["final"]) == 20
