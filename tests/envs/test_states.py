"""Environments go on from their state as if they had not been left."""

import copy
import functools

import numpy as np
import pytest
from gymnasium import wrappers
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor

from envs import LeanVecEnv, MetricBandit, MetricBanditVecEnv, make, states
from tests.envs.helpers import (
    INPUTS,
    LABELS,
    MUJOCO,
    actions_of,
    gymnasium_of,
    stacked,
    steps,
    through_a_file,
    wrapped,
)

CLASSIC = ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0"]
TEXT = ["FrozenLake-v1", "CliffWalking-v1", "Blackjack-v1", "Taxi-v4"]


def goes_on(made, before=70):
    """Whether two new vectors, and the old one in the middle of something else, go on as it did."""
    env = made(1)
    env.reset()
    actions = actions_of(env, before + 130)
    steps(env, actions[:before])
    taken = through_a_file(states.take(env))
    expected = steps(env, actions[before:])
    other = made(7)
    other.seed(5)  # what waits for the next reset
    states.give(other, taken)
    assert steps(other, actions[before:]) == expected
    states.give(env, taken)
    assert steps(env, actions[before:]) == expected


@pytest.mark.parametrize("env_id", CLASSIC + TEXT + MUJOCO)
@pytest.mark.parametrize("before", [0, 70])
def test_goes_on_bit_for_bit(env_id, before):
    if env_id in MUJOCO:
        pytest.importorskip("mujoco")
    goes_on(functools.partial(gymnasium_of, env_id), before)


def bandits(seed):
    env = LeanVecEnv([lambda: MetricBandit(INPUTS, LABELS) for _ in "ab"])
    env.seed(seed)
    return env


@pytest.mark.parametrize(
    "made",
    [
        bandits,
        lambda seed: MetricBanditVecEnv(INPUTS, LABELS, num_envs=3, seed=seed),
        lambda seed: gymnasium_of("npg/LQR-v0", seed, noise_std=0.1, horizon=30),
        functools.partial(gymnasium_of, "Taxi-v4", fickle_passenger=True, fickle_probability=1.0),
        stacked,
        lambda seed: VecMonitor(gymnasium_of("CartPole-v1", seed)),
        functools.partial(wrapped, Monitor),
        functools.partial(wrapped, lambda env: wrappers.RescaleAction(env, -1, np.float32(1))),
        functools.partial(wrapped, wrappers.RecordEpisodeStatistics),
    ],
    ids=[
        "bandits",
        "vector",
        "lqr",
        "fickle",
        "frames",
        "vec-monitor",
        "monitor",
        "rescaled",
        "counted",
    ],
)
def test_so_do_this_librarys_own_and_wrappers(made):
    goes_on(made)


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_generators_of_every_kind_go_on(kind):
    env, other = gymnasium_of("CartPole-v1"), gymnasium_of("CartPole-v1", seed=9)
    env.reset()
    for single in env.envs:
        single.unwrapped.np_random = np.random.Generator(getattr(np.random, kind)(3))
        single.unwrapped.np_random.random(5, dtype=np.float32)  # half of a word is left over
    actions = actions_of(env, 200)
    states.give(other, through_a_file(states.take(env)))
    assert steps(other, actions) == steps(env, actions)


def test_a_generator_that_others_hold_stays_the_same_object():
    env = gymnasium_of("CartPole-v1")
    env.reset()
    taken, held = states.take(env), env.envs[0].unwrapped.np_random
    expected = copy.deepcopy(held).random()
    held.random(7)
    states.give(env, taken)
    assert env.envs[0].unwrapped.np_random is held
    assert held.random() == expected


def test_episodes_in_progress_keep_their_return():
    env = make("CartPole-v1", num_envs=1, seed=0, backend="gymnasium")
    env.reset()
    env.step(np.array([0]))
    other = make("CartPole-v1", num_envs=1, seed=9, backend="gymnasium")
    states.give(other, states.take(env))
    length, ended = 1, False  # one step was taken before
    while not ended:
        *_, (ended,), infos = other.step(np.array([0]))
        length += 1
    assert infos[0]["episode"]["r"] == infos[0]["episode"]["l"] == length > 5
