"""Environments go on from their state as if they had not been left."""

import io

import gymnasium as gym
import numpy as np
import pytest

from envs import LeanVecEnv, make, states
from npg import checkpoints

CLASSIC = ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0"]
TEXT = ["FrozenLake-v1", "CliffWalking-v1", "Blackjack-v1"]
MUJOCO = ["Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "Pusher-v5", "Reacher-v5"]
MUJOCO += ["Swimmer-v5", "Walker2d-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5"]


def through_a_file(state):
    file = io.BytesIO()
    checkpoints.write(file, {"state": state})
    file.seek(0)
    return checkpoints.read(file)["state"]


def steps(env, actions):
    """All that comes out of an environment, but the clock."""
    out = []
    for action in actions:
        obs, rewards, dones, infos = env.step(action)
        infos = [{k: str(v) for k, v in info.items() if k != "episode"} for info in infos]
        out.append((str(obs), rewards.tolist(), dones.tolist(), infos))
    return out


@pytest.mark.parametrize("env_id", CLASSIC + TEXT + MUJOCO)
@pytest.mark.parametrize("before", [0, 70])
def test_goes_on_bit_for_bit(env_id, before):
    if env_id in MUJOCO:
        pytest.importorskip("mujoco")
    env = make(env_id, num_envs=2, seed=1, backend="gymnasium")
    env.reset()
    env.action_space.seed(0)
    actions = [np.array([env.action_space.sample() for _ in range(2)]) for _ in range(before + 130)]
    steps(env, actions[:before])
    taken = through_a_file(states.take(env))
    expected = steps(env, actions[before:])
    other = make(env_id, num_envs=2, seed=7, backend="gymnasium")
    other.seed(5)  # what waits for the next reset
    states.give(other, taken)
    assert steps(other, actions[before:]) == expected
    states.give(env, taken)  # into the middle of something else
    assert steps(env, actions[before:]) == expected


def test_episodes_in_progress_keep_their_return():
    env = make("CartPole-v1", num_envs=1, seed=0, backend="gymnasium")
    env.reset()
    env.step(np.array([0]))
    other = make("CartPole-v1", num_envs=1, seed=9, backend="gymnasium")
    states.give(other, states.take(env))
    while True:
        *_, dones, infos = other.step(np.array([0]))
        if dones[0]:
            break
    length = infos[0]["episode"]["l"]
    assert infos[0]["episode"]["r"] == length > 5


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


def test_unknown_environments_are_named():
    with pytest.raises(
        states.NoState, match=r"Counter consists of is not known: envs\.states\.register"
    ):
        states.take(LeanVecEnv([Counter]))


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


def test_envpool_keeps_its_state_to_itself():
    pytest.importorskip("envpool")
    with pytest.raises(states.NoState, match="does not give the state of its simulators away"):
        states.take(make("CartPole-v1", num_envs=2, backend="envpool"))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: make("CartPole-v1", num_envs=3, backend="gymnasium"), "of 2 environments, not 3"),
        (lambda: make("Acrobot-v1", num_envs=2, backend="gymnasium"), "CartPoleEnv in other"),
    ],
)
def test_states_of_other_environments_are_refused(other, said):
    env = make("CartPole-v1", num_envs=2, backend="gymnasium")
    env.reset()
    with pytest.raises(states.NoState, match=said):
        states.give(other(), states.take(env))
