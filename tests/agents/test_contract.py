"""Stable-Baselines3's contract of a class: constructor, attributes, and the zoo that uses them."""

import copy
import inspect
import sys

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from torch import nn

from agents import A2C, ACKTR, NPG, PPO, REINFORCE
from envs import LeanVecEnv
from tests.agents.helpers import (
    AGENTS,
    BOX,
    DICTIONARY,
    VECTOR,
    Toy,
    any_agent,
    every_agent,
    finite,
    minibatches,
    parameters,
    same,
    short,
    small,
    vector_env,
)


@every_agent
def test_it_is_an_on_policy_algorithm_with_its_learn(agent) -> None:
    assert issubclass(agent, OnPolicyAlgorithm)
    assert {"MlpPolicy", "CnnPolicy", "MultiInputPolicy"} <= agent.policy_aliases.keys()
    ours = inspect.signature(agent.learn).parameters
    every_rollout = agent in (*AGENTS, PPO)  # is logged; the others' are many
    peer = stable_baselines3.PPO if every_rollout else stable_baselines3.A2C
    theirs = inspect.signature(peer.learn).parameters
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


@every_agent
def test_attributes_that_others_read(agent) -> None:
    model = small(agent, vector_env(Toy, 2), stats_window_size=7).learn(128)
    assert model.n_envs == model.env.num_envs == 2
    assert model.num_timesteps == model._total_timesteps == 128
    assert model._n_updates == 1
    assert model._current_progress_remaining == 0
    assert model.ep_info_buffer.maxlen == model.ep_success_buffer.maxlen == 7
    assert model._last_obs.shape == (2, 3)
    assert model._last_episode_starts.shape == (2,)
    optimizer, rate, gae_lambda = {
        A2C: (torch.optim.RMSprop, 7e-4, 1.0),
        ACKTR: (torch.optim.Adam, 0.25, 0.95),
        PPO: (torch.optim.Adam, 3e-4, 0.95),
        REINFORCE: (torch.optim.Adam, 3e-3, 1.0),
    }.get(agent, (torch.optim.Adam, 1e-3, 0.95))
    assert isinstance(model.policy.optimizer, optimizer)
    assert model.lr_schedule(1.0) == model.learning_rate == rate
    assert model.get_vec_normalize_env() is model._vec_normalize_env is None
    assert (model.gamma, model.gae_lambda, model.n_steps) == (0.99, gae_lambda, 64)
    assert model.device == torch.device("cpu")
    assert model.seed == 0
    assert model.rollout_buffer.buffer_size == 64


@any_agent
def test_init_setup_model_false_builds_nothing_until_asked(agent) -> None:
    model = small(agent, vector_env(Toy), _init_setup_model=False)
    assert not hasattr(model, "policy")
    model._setup_model()
    assert same(parameters(model), parameters(small(agent, vector_env(Toy))))
    model.learn(64)
    assert finite(model)


@every_agent
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
    model = agent("MlpPolicy", env, **short(agent, policy_kwargs=given))
    model.learn(64)
    assert given == before
    assert model.policy.action_net.in_features == 5
    assert model.policy.value_net.in_features == 7
    assert type(model.policy.optimizer) is torch.optim.SGD
    assert model.policy.optimizer.param_groups[0]["momentum"] == 0.5


@any_agent
def test_gym_ids_and_environments_are_wrapped_and_monitored(agent) -> None:
    by_id = agent("MlpPolicy", "CartPole-v1", **short(agent))
    assert isinstance(by_id.env, DummyVecEnv)
    by_id.learn(64)
    assert len(by_id.ep_info_buffer) > 0
    plain = agent("MlpPolicy", gym.make("CartPole-v1"), **short(agent))
    assert isinstance(plain.env, LeanVecEnv)
    assert plain.env.env_is_wrapped(Monitor) == [True]
    monitored = Monitor(gym.make("CartPole-v1"))
    kept = agent("MlpPolicy", monitored, **short(agent)).learn(64)
    assert kept.env.envs[0] is monitored
    assert len(monitored.get_episode_lengths()) == len(kept.ep_info_buffer)
    with pytest.raises((ValueError, TypeError)):
        agent("MlpPolicy", 3)
    with pytest.raises(gym.error.Error):
        agent("MlpPolicy", "NoSuchEnvironment-v0")


@any_agent
def test_an_environment_without_render_modes_can_be_named_by_its_id(agent) -> None:
    model = agent("MlpPolicy", "npg/LQR-v0", **short(agent))
    model.learn(64)
    assert finite(model)


@any_agent
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


@any_agent
def test_sde_needs_a_box_and_boxes_need_bounds(agent) -> None:
    with pytest.raises(ValueError, match="State-Dependent"):
        small(agent, vector_env(Toy), use_sde=True)
    unbounded = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    with pytest.raises(AssertionError, match="finite"):
        small(agent, vector_env(lambda: Toy(VECTOR, unbounded)))


@every_agent
def test_image_observations(agent) -> None:
    """Channels last are transposed, NatureCNN fits 36 × 36."""
    image = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    settings = {"n_steps": 16, **minibatches(agent, 16)}
    if agent in AGENTS:
        settings |= {"n_critic_updates": 1, "cg_max_steps": 2}
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


@every_agent
def test_frame_stacks(agent) -> None:
    env = VecFrameStack(vector_env(lambda: Toy(VECTOR, BOX), 2), 2)
    model = small(agent, env).learn(128)
    assert model.rollout_buffer.observations.shape == (64, 2, 6)
    assert finite(model)


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
