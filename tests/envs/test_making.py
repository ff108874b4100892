"""`make`: one call, the right vector, clear errors."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from envs import EnvPoolVecEnv, LeanVecEnv, LeanVecNormalize, LinearQuadraticRegulator, make, making


class Goal(gym.Env):
    """Dict observations, one of them discrete."""

    def __init__(self, size: int = 2) -> None:
        box = spaces.Box(-1, 1, (size,), np.float32)
        self.observation_space = spaces.Dict(position=box, mode=spaces.Discrete(3))
        self.action_space = spaces.Discrete(2)
        self.render_mode = None


def test_seeded_as_make_vec_env() -> None:
    ours = make("CartPole-v1", num_envs=3, seed=5)
    theirs = make_vec_env("CartPole-v1", n_envs=3, seed=5)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    for env, oracle in zip(ours.envs, theirs.envs, strict=True):
        sampled = [env.action_space.sample() for _ in range(20)]
        assert sampled == [oracle.action_space.sample() for _ in range(20)]
    for _ in range(50):
        actions = np.zeros(3, int)
        np.testing.assert_array_equal(ours.step(actions)[0], theirs.step(actions)[0])


def test_without_a_seed_numpy_decides() -> None:
    def first_obs() -> np.ndarray:
        np.random.seed(1)  # noqa: NPY002 - what Stable-Baselines3 draws from
        return make("CartPole-v1", 2).reset()

    np.testing.assert_array_equal(first_obs(), first_obs())


def test_time_limit_and_order_stay_enforced() -> None:
    venv = make("Pendulum-v1")
    with pytest.raises(gym.error.ResetNeeded):
        venv.step(np.zeros((1, 1), np.float32))
    venv.reset()
    dones = [venv.step(np.zeros((1, 1), np.float32))[2][0] for _ in range(200)]
    assert dones == [False] * 199 + [True]
    assert venv.env_is_wrapped(Monitor) == [True]


def test_callables_and_keyword_arguments() -> None:
    venv = make(LinearQuadraticRegulator, 2, seed=0, horizon=3, backend="gymnasium")
    assert venv.get_attr("horizon") == [3, 3]
    assert make("npg/LQR-v0", horizon=4).get_attr("horizon") == [4]
    assert make("CartPole-v1", render_mode="rgb_array").render_mode == "rgb_array"


def test_normalisation() -> None:
    venv = make("Pendulum-v1", 2, seed=0, normalize_obs=True, normalize_reward=True, gamma=0.9)
    assert isinstance(venv, LeanVecNormalize)
    assert isinstance(venv, VecNormalize)
    assert (venv.norm_obs, venv.norm_reward, venv.gamma) == (True, True, 0.9)
    venv = make("CartPole-v1", normalize_reward=True)
    assert isinstance(venv, LeanVecNormalize)
    assert not venv.norm_obs
    assert type(make("CartPole-v1")) is LeanVecEnv


def test_auto_takes_envpool_only_where_it_is_the_same_and_faster(monkeypatch) -> None:
    chosen = making._envpool_is_better
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert chosen("CartPole-v1", 16, {})
    assert chosen("Hopper-v5", 8, {})
    assert not chosen("CartPole-v1", 15, {})
    assert not chosen("CartPole-v1", 64, {"render_mode": None})
    assert not chosen("Ant-v5", 64, {})
    assert not chosen(LinearQuadraticRegulator, 64, {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not chosen("CartPole-v1", 64, {})
    assert isinstance(make("CartPole-v1", 64), LeanVecEnv)


def test_envpool() -> None:
    pytest.importorskip("envpool")
    assert isinstance(make("CartPole-v1", 64, seed=0), EnvPoolVecEnv)
    assert isinstance(make("CartPole-v1", 64, backend="gymnasium"), LeanVecEnv)
    venv = make("CartPole-v1", 2, seed=3, backend="envpool", normalize_obs=True)
    assert isinstance(venv, LeanVecNormalize)
    assert isinstance(venv.venv, EnvPoolVecEnv)
    again = make("CartPole-v1", 2, seed=3, backend="envpool", normalize_obs=True)
    np.testing.assert_array_equal(venv.reset(), again.reset())
    assert venv.action_space.sample() == again.action_space.sample()
    with pytest.raises(ValueError, match="EnvPool has no environment 'npg/LQR-v0'"):
        make("npg/LQR-v0", backend="envpool")
    with pytest.raises(ValueError, match="callable"):
        make(LinearQuadraticRegulator, backend="envpool")
    with pytest.raises(ValueError, match="render_mode"):
        make("CartPole-v1", backend="envpool", render_mode="rgb_array")


def test_envpool_missing_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r"pip install \.\[envpool\]"):
        make("CartPole-v1", backend="envpool")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": "Nothing-v0"}, "id 'Nothing-v0' is unknown"),
        ({"id": "CartPole-v99"}, "id 'CartPole-v99' is unknown"),
        ({"id": "nowhere/Nothing-v0"}, "id 'nowhere/Nothing-v0' is unknown"),
        ({"id": "not an id"}, "id 'not an id' is unknown"),
        ({"num_envs": 0}, "num_envs must be a positive integer, got 0"),
        ({"num_envs": 2.0}, "num_envs must be a positive integer"),
        ({"backend": "torch"}, "backend must be 'auto', 'gymnasium' or 'envpool', got 'torch'"),
        ({"gamma": 1.5}, "gamma must lie between 0 and 1"),
        ({"id": "FrozenLake-v1", "normalize_obs": True}, "normalize_obs=True needs Box"),
        ({"id": Goal, "normalize_obs": True}, r"\['mode'\] are not: .*norm_obs_keys"),
    ],
)
def test_bad_input_is_named_with_its_remedy(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**{"id": "CartPole-v1", **arguments})


def test_importing_does_not_import_envpool() -> None:
    code = "import envs, sys; assert 'envpool' not in sys.modules and 'npg' not in sys.modules"
    root = Path(making.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
