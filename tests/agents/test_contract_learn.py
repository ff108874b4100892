"""Stable-Baselines3's contract of `learn`: what loggers are given, and callbacks called with."""

import warnings

import numpy as np
import pytest
import stable_baselines3
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from agents import A2C, PPO, REINFORCE, TRPO
from tests.agents.helpers import (
    BOX,
    VECTOR,
    Toy,
    any_agent,
    both_agents,
    both_critics,
    every_agent,
    minibatches,
    short,
    small,
    vector_env,
)


class Recorder(KVWriter):
    """Keeps what the logger is given: one dictionary per dump."""

    def __init__(self) -> None:
        self.dumps: list[dict] = []
        self.steps: list[int] = []

    def write(self, key_values, key_excluded, step=0) -> None:
        self.dumps.append(dict(key_values))
        self.steps.append(step)

    def close(self) -> None:
        pass


def recorded(model) -> Recorder:
    recorder = Recorder()
    model.set_logger(Logger(None, [recorder]))
    return recorder


# ------------------------------------------------------------------------------------------ learn


@every_agent
def test_learn_returns_itself_counts_and_resets(agent) -> None:
    model = small(agent, vector_env(Toy, 2))
    assert model.learn(100) is model
    assert model.num_timesteps == 128  # whole rollouts
    model.learn(128, reset_num_timesteps=False)
    assert model.num_timesteps == 256
    assert model._total_timesteps == 256
    assert model._n_updates == 2
    model.learn(128)
    assert model.num_timesteps == 128


@both_agents
@both_critics
def test_logged_keys(agent, critic) -> None:
    model = small(agent, vector_env(lambda: Monitor(Toy(VECTOR, BOX))), critic=critic)
    recorder = recorded(model)
    model.learn(64 * 3, log_interval=1)
    assert recorder.steps == [64, 128, 192]
    first, last = recorder.dumps[0], recorder.dumps[-1]
    rollout = {"rollout/ep_rew_mean", "rollout/ep_len_mean"}
    time = {"time/fps", "time/iterations", "time/time_elapsed", "time/total_timesteps"}
    assert first.keys() == rollout | time  # logs are dumped before train()
    assert last.keys() == rollout | time | {
        "train/policy_objective",
        "train/value_loss",
        "train/kl_divergence_loss",
        "train/target_kl",
        "train/explained_variance",
        "train/is_line_search_success",
        "train/step_fraction",
        "train/cg_iterations",
        "train/cg_residual",
        "train/learning_rate",
        "train/std",
        "train/n_updates",
    }
    assert last["time/total_timesteps"] == 192
    assert last["train/n_updates"] == 2
    assert 0 < last["train/kl_divergence_loss"] < 0.05
    assert last["train/target_kl"] == 0.01
    assert last["train/cg_residual"] < 1
    assert last["train/policy_objective"] > 0
    assert last["train/explained_variance"] <= 1
    assert last["train/is_line_search_success"] == 1
    np.testing.assert_allclose(last["train/std"], 1.0, atol=0.1)


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        pytest.param(A2C, stable_baselines3.A2C, {}, id="A2C"),
        pytest.param(PPO, stable_baselines3.PPO, {}, id="PPO"),
        pytest.param(PPO, stable_baselines3.PPO, {"clip_range_vf": 0.1}, id="PPO-clipped-value"),
        pytest.param(REINFORCE, stable_baselines3.A2C, {}, id="REINFORCE"),
    ],
)
def test_logged_keys_are_those_of_stable_baselines3(ours, theirs, settings) -> None:
    dumps = []
    for agent in (ours, theirs):
        env = vector_env(lambda: Monitor(Toy(VECTOR, BOX)))
        model = agent("MlpPolicy", env, **short(ours, **settings))
        recorder = recorded(model)
        model.learn(64 * 3, log_interval=1)
        dumps.append([dump.keys() for dump in recorder.dumps])
    assert dumps[0] == dumps[1]
    assert "train/value_loss" in dumps[0][-1]


def test_log_interval() -> None:
    model = small(TRPO, vector_env(Toy))
    recorder = recorded(model)
    model.learn(64 * 5, log_interval=2)
    assert recorder.steps == [128, 256]


@any_agent
def test_tensorboard_directories_are_numbered(agent, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    model = small(agent, vector_env(Toy), tensorboard_log=str(tmp_path))
    model.learn(64)
    model.learn(64)
    model.learn(64, reset_num_timesteps=False)
    model.learn(64, tb_log_name="other")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted([f"{agent.__name__}_1", f"{agent.__name__}_2", "other_1"])
    assert all(any(path.iterdir()) for path in tmp_path.iterdir())


@every_agent
def test_learning_rate_schedules_reach_the_critic(agent) -> None:
    model = small(agent, vector_env(Toy), learning_rate=lambda remaining: 0.1 * remaining)
    seen = []
    train = model.train
    model.train = lambda: (train(), seen.append(model.policy.optimizer.param_groups[0]["lr"]))
    model.learn(64 * 4)
    np.testing.assert_allclose(seen, [0.075, 0.05, 0.025, 0.0])


@every_agent
def test_progress_bar(agent) -> None:
    pytest.importorskip("tqdm")
    pytest.importorskip("rich")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm.rich calls itself experimental
        model = small(agent, vector_env(Toy)).learn(64, progress_bar=True)
    assert model.num_timesteps == 64


# -------------------------------------------------------------------------------------- callbacks


class Order(BaseCallback):
    """Notes which of its methods is called when."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def _on_training_start(self) -> None:
        self.calls.append("training start")

    def _on_rollout_start(self) -> None:
        self.calls.append("rollout start")

    def _on_step(self) -> bool:
        self.calls.append("step")
        return True

    def _on_rollout_end(self) -> None:
        self.calls.append("rollout end")

    def _on_training_end(self) -> None:
        self.calls.append("training end")


@every_agent
def test_callbacks_are_called_in_order(agent) -> None:
    callback = Order()
    model = small(agent, vector_env(Toy), n_steps=4, **minibatches(agent, 4))
    train = model.train
    model.train = lambda: (callback.calls.append("train"), train())
    model.learn(8, callback=callback)
    rollout = ["rollout start", *["step"] * 4, "rollout end", "train"]
    assert callback.calls == ["training start", *rollout, *rollout, "training end"]


def test_functions_and_lists_are_callbacks() -> None:
    counted = []
    model = small(TRPO, vector_env(Toy))

    def function(local: dict, _global: dict) -> bool:
        counted.append(local["n_steps"])
        return True

    model.learn(64, callback=function)
    assert counted == list(range(64))
    model.learn(64, callback=[Order(), CallbackList([Order()])])


@any_agent
def test_eval_callback_writes_its_file_and_the_best_model(agent, tmp_path) -> None:
    evaluation = vector_env(lambda: Monitor(Toy(VECTOR, BOX)))
    callback = EvalCallback(
        evaluation,
        n_eval_episodes=3,
        eval_freq=64,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    model = small(agent, vector_env(lambda: Toy(VECTOR, BOX)))
    recorder = recorded(model)
    model.learn(64 * 3, callback=callback)
    file = np.load(tmp_path / "evaluations.npz")
    np.testing.assert_array_equal(file["timesteps"], [64, 128, 192])
    assert file["results"].shape == file["ep_lengths"].shape == (3, 3)
    assert {"eval/mean_reward", "eval/mean_ep_length"} <= set().union(*recorder.dumps)
    best = agent.load(tmp_path / "best_model")
    assert best.num_timesteps in (64, 128, 192)


def test_eval_callback_syncs_the_normaliser(tmp_path) -> None:
    evaluation = VecNormalize(vector_env(lambda: Monitor(Toy())), training=False, norm_reward=False)
    model = small(TRPO, VecNormalize(vector_env(Toy)))
    callback = EvalCallback(evaluation, n_eval_episodes=1, eval_freq=64, verbose=0)
    model.learn(64, callback=callback)
    ours = model.get_vec_normalize_env()
    np.testing.assert_array_equal(evaluation.obs_rms.mean, ours.obs_rms.mean)
    assert ours.obs_rms.count > 60


def test_stop_on_reward_ends_the_training_early() -> None:
    evaluation = vector_env(lambda: Monitor(Toy()))
    stop = StopTrainingOnRewardThreshold(reward_threshold=-1e9, verbose=0)
    callback = EvalCallback(evaluation, stop, n_eval_episodes=1, eval_freq=32, verbose=0)
    model = small(TRPO, vector_env(Toy)).learn(64 * 5, callback=callback)
    assert model.num_timesteps == 32


def test_stop_on_episodes() -> None:
    callback = StopTrainingOnMaxEpisodes(max_episodes=3)
    model = small(TRPO, vector_env(lambda: Toy(death=0, limit=9))).learn(640, callback=callback)
    assert model.num_timesteps == 27


@every_agent
def test_checkpoint_callback_saves_what_loads(agent, tmp_path) -> None:
    callback = CheckpointCallback(
        save_freq=64, save_path=str(tmp_path), name_prefix="m", save_vecnormalize=True
    )
    model = small(agent, VecNormalize(vector_env(Toy))).learn(192, callback=callback)
    assert len(list(tmp_path.glob("m_*_steps.zip"))) == 3
    assert len(list(tmp_path.glob("m_vecnormalize_*.pkl"))) == 3
    loaded = agent.load(tmp_path / "m_192_steps", env=vector_env(Toy))
    assert loaded.num_timesteps == 192
    # It was saved within the third rollout, before the third update.
    assert loaded._n_updates == model._n_updates - 1 == 2
    with_file = VecNormalize.load(str(tmp_path / "m_vecnormalize_192_steps.pkl"), vector_env(Toy))
    np.testing.assert_array_equal(
        loaded.get_vec_normalize_env().obs_rms.mean, with_file.obs_rms.mean
    )


def test_every_n_timesteps() -> None:
    inner = Order()
    small(TRPO, vector_env(Toy)).learn(128, callback=EveryNTimesteps(32, inner))
    assert inner.calls.count("step") == 4
