"""Environments of which no state is known are named, and may be made known."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize

from envs import LeanVecEnv, make, states
from tests.envs.helpers import through_a_file


class Counter(gym.Env):
    """Known to nobody; what it counts is in no attribute that is data."""

    observation_space = gym.spaces.Box(0, 100, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self):
        self.count = iter(range(100))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.array([next(self.count)], np.float32), 0.0, False, False, {}


class Remembering(VecEnvWrapper):
    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        return self.venv.step_wait()


class Own(LeanVecEnv):
    """A subclass may remember something."""


def cartpoles(wrap=lambda env: env):
    return LeanVecEnv([lambda: wrap(gym.make("CartPole-v1"))])


def adding(env):
    return wrappers.TransformObservation(env, lambda obs: obs + 1, env.observation_space)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (lambda: LeanVecEnv([Counter]), "test_states_unknown.Counter"),
        (lambda: cartpoles(adding), "transform_observation.TransformObservation"),
        (lambda: cartpoles(wrappers.TimeAwareObservation), "TimeAwareObservation"),
        (lambda: Remembering(cartpoles()), "test_states_unknown.Remembering"),
        (lambda: Own([lambda: gym.make("CartPole-v1")]), "test_states_unknown.Own"),
    ],
)
def test_what_is_not_known_is_named(made, name):
    env = made()
    env.reset()
    said = rf"{name} consists of is not known \(envs\.states\.register"
    with pytest.raises(states.NoState, match=said):
        states.take(env)


def test_one_normaliser_is_saved_beside_and_a_second_one_is_refused():
    env = VecNormalize(cartpoles())
    env.reset()
    states.give(env, states.take(env))
    with pytest.raises(states.NoState, match="two normalisers"):
        states.take(VecNormalize(env))


def test_envpool_keeps_its_state_to_itself():
    pytest.importorskip("envpool")
    with pytest.raises(states.NoState, match="EnvPool has no way to ask for the state"):
        states.take(make("CartPole-v1", num_envs=2, backend="envpool"))


def test_environments_are_made_known(monkeypatch):
    monkeypatch.setattr(states, "_registered", {})

    def give(env, state):
        env.count = iter(range(state["next"], 100))

    states.register(Counter, lambda env: {"next": env.count.__reduce__()[2]}, give)
    env = LeanVecEnv([Counter])
    env.reset()
    for _ in range(3):
        env.step(np.array([0]))
    other = LeanVecEnv([Counter])
    states.give(other, through_a_file(states.take(env)))
    assert other.step(np.array([0]))[0].item() == 3


def test_what_an_environment_raises_is_a_reason(monkeypatch):
    monkeypatch.setattr(states, "_registered", {})

    def bad(*_):
        raise ZeroDivisionError("its own")

    env = LeanVecEnv([Counter])
    env.reset()
    states.register(Counter, bad, bad)
    with pytest.raises(states.NoState, match=r"ZeroDivisionError.'its own'"):
        states.take(env)
    states.register(Counter, lambda env: {}, bad)
    with pytest.raises(states.NoState, match=r"ZeroDivisionError.'its own'"):
        states.give(env, states.take(env))
