"""Stable-Baselines3's contract: what its callbacks, loggers, evaluation and the zoo rely on."""

import copy
import inspect
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from torch import nn

from agents import NPG, TRPO
from envs import LeanVecEnv
from tests.agents.helpers import (
    AGENTS,
    BOX,
    DICTIONARY,
    IMAGE,
    VECTOR,
    BatchNorm,
    SmallCnn,
    Toy,
    finite,
    parameters,
    same,
    small,
    vector_env,
)

both_agents = pytest.mark.parametrize("agent", AGENTS)


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


# -------------------------------------------------------------------------- class and constructor


@both_agents
def test_it_is_an_on_policy_algorithm_with_its_learn(agent) -> None:
    assert issubclass(agent, OnPolicyAlgorithm)
    assert {"MlpPolicy", "CnnPolicy", "MultiInputPolicy"} <= agent.policy_aliases.keys()
    ours = inspect.signature(agent.learn).parameters
    theirs = inspect.signature(PPO.learn).parameters
    assert list(ours) == list(theirs)
    for name in set(ours) - {"tb_log_name"}:
        assert ours[name].default == theirs[name].default
    assert ours["tb_log_name"].default == agent.__name__
    required = [
        p.name
        for p in list(inspect.signature(agent.__init__).parameters.values())[1:]
        if p.default is inspect.Parameter.empty
    ]
    assert required == ["policy", "env"]


@both_agents
def test_attributes_that_others_read(agent) -> None:
    model = small(agent, vector_env(Toy, 2), stats_window_size=7).learn(128)
    assert model.n_envs == model.env.num_envs == 2
    assert model.num_timesteps == model._total_timesteps == 128
    assert model._n_updates == 1
    assert model._current_progress_remaining == 0
    assert model.ep_info_buffer.maxlen == model.ep_success_buffer.maxlen == 7
    assert model._last_obs.shape == (2, 3)
    assert model._last_episode_starts.shape == (2,)
    assert isinstance(model.policy.optimizer, torch.optim.Adam)
    assert model.lr_schedule(1.0) == model.learning_rate == 1e-3
    assert model.get_vec_normalize_env() is model._vec_normalize_env is None
    assert (model.gamma, model.gae_lambda, model.n_steps) == (0.99, 0.95, 64)
    assert model.device == torch.device("cpu")
    assert model.seed == 0
    assert model.rollout_buffer.buffer_size == 64


@both_agents
def test_init_setup_model_false_builds_nothing_until_asked(agent) -> None:
    model = small(agent, vector_env(Toy), _init_setup_model=False)
    assert not hasattr(model, "policy")
    model._setup_model()
    assert same(parameters(model), parameters(small(agent, vector_env(Toy))))
    model.learn(64)
    assert finite(model)


@both_agents
def test_policy_kwargs_are_used_and_not_changed(agent) -> None:
    given = {
        "net_arch": {"pi": [5], "vf": [7]},
        "activation_fn": nn.ReLU,
        "optimizer_class": torch.optim.SGD,
        "optimizer_kwargs": {"momentum": 0.5},
        "log_std_init": -1.0,
    }
    before = copy.deepcopy(given)
    env = vector_env(lambda: Toy(VECTOR, BOX))
    model = agent("MlpPolicy", env, n_steps=64, batch_size=32, policy_kwargs=given, seed=0)
    model.learn(64)
    assert given == before
    assert model.policy.action_net.in_features == 5
    assert model.policy.value_net.in_features == 7
    assert type(model.policy.optimizer) is torch.optim.SGD
    assert model.policy.optimizer.param_groups[0]["momentum"] == 0.5


@both_agents
def test_gym_ids_and_environments_are_wrapped_and_monitored(agent) -> None:
    by_id = agent("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, device="cpu", seed=0)
    assert isinstance(by_id.env, DummyVecEnv)
    by_id.learn(64)
    assert len(by_id.ep_info_buffer) > 0
    plain = agent("MlpPolicy", gym.make("CartPole-v1"), n_steps=64, batch_size=32, device="cpu")
    assert isinstance(plain.env, LeanVecEnv)
    assert plain.env.env_is_wrapped(Monitor) == [True]
    monitored = Monitor(gym.make("CartPole-v1"))
    kept = agent("MlpPolicy", monitored, n_steps=64, batch_size=32, device="cpu", seed=0).learn(64)
    assert kept.env.envs[0] is monitored
    assert len(monitored.get_episode_lengths()) == len(kept.ep_info_buffer)
    with pytest.raises((ValueError, TypeError)):
        agent("MlpPolicy", 3)
    with pytest.raises(gym.error.Error):
        agent("MlpPolicy", "NoSuchEnvironment-v0")


@both_agents
def test_an_environment_without_render_modes_can_be_named_by_its_id(agent) -> None:
    model = agent("MlpPolicy", "npg/LQR-v0", n_steps=64, batch_size=32, device="cpu", seed=0)
    model.learn(64)
    assert finite(model)


@both_agents
@pytest.mark.parametrize(
    ("policy", "observations", "error", "message"),
    [
        ("MlpPolicy", DICTIONARY, ValueError, "MultiInputPolicy"),
        ("CnnPolicy", DICTIONARY, ValueError, "MultiInputPolicy"),
        ("CnnPolicy", VECTOR, AssertionError, "NatureCNN"),
        ("NoPolicy", VECTOR, ValueError, "NoPolicy"),
    ],
)
def test_wrong_policies_are_refused_as_in_sb3(agent, policy, observations, error, message) -> None:
    with pytest.raises(error, match=message):
        small(agent, vector_env(lambda: Toy(observations)), policy)


@both_agents
def test_sde_needs_a_box_and_boxes_need_bounds(agent) -> None:
    with pytest.raises(ValueError, match="State-Dependent"):
        small(agent, vector_env(Toy), use_sde=True)
    unbounded = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    with pytest.raises(AssertionError, match="finite"):
        small(agent, vector_env(lambda: Toy(VECTOR, unbounded)))


@both_agents
def test_image_observations(agent) -> None:
    """Channels last are transposed, NatureCNN fits 36 × 36."""
    image = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    settings = {"n_steps": 16, "batch_size": 16, "n_critic_updates": 1, "cg_max_steps": 2}
    features = {"features_extractor_kwargs": {"features_dim": 8}}
    model = small(
        agent, vector_env(lambda: Toy(image)), "CnnPolicy", policy_kwargs=features, **settings
    )
    before = parameters(model)
    model.learn(16)
    assert model.rollout_buffer.observations.shape == (16, 1, 3, 36, 36)
    assert model.rollout_buffer.observations.dtype == np.uint8
    assert not same(before, parameters(model))
    assert finite(model)


@both_agents
def test_frame_stacks(agent) -> None:
    env = VecFrameStack(vector_env(lambda: Toy(VECTOR, BOX), 2), 2)
    model = small(agent, env).learn(128)
    assert model.rollout_buffer.observations.shape == (64, 2, 6)
    assert finite(model)


# ------------------------------------------------------------------------------------------ learn


@both_agents
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
@pytest.mark.parametrize("critic", ["adam", "gauss-newton"])
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
    assert last["train/cg_residual"] < 1
    assert last["train/policy_objective"] > 0
    assert last["train/explained_variance"] <= 1
    assert last["train/is_line_search_success"] == 1
    np.testing.assert_allclose(last["train/std"], 1.0, atol=0.1)


def test_log_interval() -> None:
    model = small(TRPO, vector_env(Toy))
    recorder = recorded(model)
    model.learn(64 * 5, log_interval=2)
    assert recorder.steps == [128, 256]


@both_agents
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


@both_agents
def test_learning_rate_schedules_reach_the_critic(agent) -> None:
    model = small(agent, vector_env(Toy), learning_rate=lambda remaining: 0.1 * remaining)
    seen = []
    train = model.train
    model.train = lambda: (train(), seen.append(model.policy.optimizer.param_groups[0]["lr"]))
    model.learn(64 * 4)
    np.testing.assert_allclose(seen, [0.075, 0.05, 0.025, 0.0])


@both_agents
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


@both_agents
def test_callbacks_are_called_in_order(agent) -> None:
    callback = Order()
    model = small(agent, vector_env(Toy), n_steps=4, batch_size=4)
    train = model.train
    model.train = lambda: (callback.calls.append("train"), train())
    model.learn(8, callback=callback)
    rollout = ["rollout start", *["step"] * 4, "rollout end", "train"]
    assert callback.calls == ["training start", *rollout, *rollout, "training end"]


def test_functions_and_lists_are_callbacks() -> None:
    counted = []
    model = small(TRPO, vector_env(Toy))
    function = lambda local, _global: counted.append(local["n_steps"]) or True  # noqa: E731
    model.learn(64, callback=function)
    assert counted == list(range(64))
    model.learn(64, callback=[Order(), CallbackList([Order()])])


@both_agents
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


@both_agents
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


# ------------------------------------------------------------------------- prediction, evaluation


@both_agents
def test_evaluate_policy(agent) -> None:
    model = small(agent, vector_env(lambda: Monitor(Toy(death=0.0, limit=5))))
    rewards, lengths = evaluate_policy(
        model, model.get_env(), n_eval_episodes=4, return_episode_rewards=True
    )
    assert lengths == [5] * 4
    assert len(rewards) == 4


@both_agents
def test_predict_shapes_and_determinism(agent) -> None:
    model = small(agent, vector_env(lambda: Toy(VECTOR, BOX)))
    one, many = np.zeros(3, np.float32), np.ones((4, 3), np.float32)
    assert model.predict(one)[0].shape == (2,)
    assert model.predict(many)[0].shape == (4, 2)
    first, state = model.predict(many, deterministic=True)
    assert state is None
    np.testing.assert_array_equal(first, model.predict(many, deterministic=True)[0])
    assert not np.array_equal(model.predict(many)[0], model.predict(many)[0])


# ---------------------------------------------------------------------------------- get_parameters


@both_agents
@pytest.mark.parametrize("critic", ["adam", "gauss-newton"])
def test_parameters_can_be_read_and_written(agent, critic) -> None:
    model = small(agent, vector_env(Toy), critic=critic).learn(64)
    taken = copy.deepcopy(model.get_parameters())
    assert next(iter(taken)) == "policy"
    assert "policy.optimizer" in taken
    assert all("optim" in name for name in list(taken)[1:])
    before = parameters(model)
    model.learn(64)
    assert not same(before, parameters(model))
    model.set_parameters(taken)
    assert same(before, parameters(model))
    other = small(agent, vector_env(Toy), critic=critic, seed=1)
    other.set_parameters(taken)
    assert same(before, parameters(other))
    assert other._optimizers()["actor"].extra["steps"] == 1


@both_agents
def test_set_parameters_complains_as_in_sb3(agent, tmp_path) -> None:
    model = small(agent, vector_env(Toy))
    taken = copy.deepcopy(model.get_parameters())
    with pytest.raises(ValueError, match="invalid object name"):
        model.set_parameters({**taken, "nonsense": {}})
    without = {name: value for name, value in taken.items() if name != "policy.optimizer"}
    with pytest.raises(ValueError, match="do not match"):
        model.set_parameters(without)
    model.set_parameters(without, exact_match=False)
    weights = dict(taken["policy"])
    weights.pop("action_net.bias")
    with pytest.raises(RuntimeError, match=r"action_net\.bias"):
        model.set_parameters({**taken, "policy": weights})
    model.save(tmp_path / "model")
    other = small(agent, vector_env(Toy), seed=3)
    other.set_parameters(str(tmp_path / "model"))
    assert same(parameters(model), parameters(other))


def test_sb3_reads_our_archive(tmp_path) -> None:
    """Members are Stable-Baselines3's and one of ours, and safe to unpickle."""
    from stable_baselines3.common.save_util import load_from_zip_file

    model = small(TRPO, VecNormalize(vector_env(Toy)), critic="gauss-newton").learn(64)
    model.save(tmp_path / "model")
    data, params, _ = load_from_zip_file(tmp_path / "model.zip")
    assert data["target_kl"] == 0.01
    assert {"policy", "policy.optimizer"} < params.keys()
    assert not {"env", "rollout_buffer", "logger"} & data.keys()


# ----------------------------------------------------------------------------------- train and eval


@both_agents
@pytest.mark.parametrize("critic", ["adam", "gauss-newton"])
@pytest.mark.parametrize("share", [True, False])
def test_batch_norm_moves_in_train_and_not_elsewhere(agent, critic, share) -> None:
    extractor = {"features_extractor_class": BatchNorm, "share_features_extractor": share}
    env = vector_env(lambda: Toy(VECTOR, BOX))
    model = small(agent, env, policy_kwargs=extractor, critic=critic)

    def statistics() -> list[torch.Tensor]:
        names = ("features_extractor", "pi_features_extractor", "vf_features_extractor")
        norms = [getattr(model.policy, name).net[1] for name in names]
        return [b.clone() for norm in norms for b in (norm.running_mean, norm.running_var)]

    start = statistics()
    assert torch.equal(start[0], torch.zeros(3))
    assert torch.equal(start[1], torch.ones(3))
    _, callback = model._setup_learn(64)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    assert same(start, statistics())
    model.train()
    after = statistics()
    assert all(not torch.equal(a, b) for a, b in zip(start[2:], after[2:], strict=True))
    model.predict(np.ones((5, 3), np.float32))
    assert same(after, statistics())
    weights = parameters(model)
    evaluate_policy(model, vector_env(lambda: Monitor(Toy(VECTOR, BOX))), n_eval_episodes=1)
    assert same(weights, parameters(model))


@both_agents
@pytest.mark.parametrize("critic", ["adam", "gauss-newton"])
def test_convolutional_features_are_shared_and_learn(agent, critic) -> None:
    env = vector_env(lambda: Toy(IMAGE))
    model = small(
        agent,
        env,
        "CnnPolicy",
        policy_kwargs={"features_extractor_class": SmallCnn},
        n_steps=16,
        critic=critic,
    )
    convolution = model.policy.features_extractor.net[0]
    before = convolution.weight.detach().clone()
    model.learn(16)
    assert {id(p) for p in model.policy.features_extractor.parameters()} <= {
        id(p) for p in model.parts.shared
    }
    assert not torch.equal(before, convolution.weight)


# ---------------------------------------------------------------------------------- deterministic


@both_agents
@pytest.mark.parametrize("critic", ["adam", "gauss-newton"])
@pytest.mark.parametrize("count", [1, 3])
def test_the_same_seed_gives_the_same_parameters(agent, critic, count) -> None:
    def trained(seed: int) -> list[torch.Tensor]:
        env = vector_env(lambda: Toy(VECTOR, BOX), count)
        settings = {"critic": critic, "sub_sampling_factor": 2, "seed": seed}
        return parameters(small(agent, env, **settings).learn(64 * count * 2))

    first = trained(0)
    torch.rand(100), np.random.rand(100)  # noqa: NPY002 - what others draw does not matter
    assert same(first, trained(0))
    assert not same(first, trained(1))


# ------------------------------------------------------------------------------------------ rl-zoo


def test_the_zoo_trains_a_registered_agent(tmp_path, monkeypatch) -> None:
    zoo = pytest.importorskip("rl_zoo3")
    from rl_zoo3.train import train

    monkeypatch.setitem(zoo.ALGOS, "npg", NPG)
    settings = tmp_path / "npg.yml"
    settings.write_text(
        "CartPole-v1:\n"
        "  n_timesteps: !!float 256\n"
        "  policy: 'MlpPolicy'\n"
        "  n_envs: 2\n"
        "  n_steps: 64\n"
        "  batch_size: 32\n"
        "  learning_rate: lin_1e-3\n"
        "  normalize: true\n"
        "  critic: 'gauss-newton'\n"
        "  policy_kwargs: 'dict(net_arch=[8])'\n"
    )
    arguments = f"--algo npg --env CartPole-v1 --conf-file {settings} --eval-freq 128 -f {tmp_path}"
    options = "--eval-episodes 1 --n-eval-envs 1 --seed 1 --device cpu --verbose 0"
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments.split(), *options.split()])
    monkeypatch.chdir(tmp_path)
    train()
    run = tmp_path / "npg" / "CartPole-v1_1"
    assert (run / "evaluations.npz").exists()
    loaded = NPG.load(
        run / "CartPole-v1",  # a folder of that name holds the settings
        custom_objects={"learning_rate": 0.0, "lr_schedule": lambda _: 0.0},
        device="cpu",
        seed=3,
    )
    assert isinstance(loaded, BaseAlgorithm)
    assert loaded.num_timesteps == 256
    assert loaded.critic == "gauss-newton"
    assert loaded.training_optim_state.normaliser is not None
