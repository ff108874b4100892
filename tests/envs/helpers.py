"""What the tests of environments' states share: environments, and all that comes out of them."""

import io

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecFrameStack

from envs import LeanVecEnv, make
from npg import checkpoints

MUJOCO = ["Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "Pusher-v5", "Reacher-v5"]
MUJOCO += ["HumanoidStandup-v5", "Swimmer-v5", "Walker2d-v5"]
MUJOCO += ["InvertedPendulum-v5", "InvertedDoublePendulum-v5"]
INPUTS, LABELS = np.arange(40.0).reshape(20, 2), np.arange(20) % 3


def through_a_file(state):
    file = io.BytesIO()
    checkpoints.write(file, {"state": state})
    file.seek(0)
    return checkpoints.read(file)["state"]


def in_bytes(value):
    """Every bit of it: printed numbers are rounded."""
    if isinstance(value, dict):
        return {key: in_bytes(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [in_bytes(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.str, value.shape, value.tobytes()
    return value.hex() if isinstance(value, float) else value


def steps(env, actions):
    """All that comes out of an environment, but the clock."""
    out = []
    for action in actions:
        obs, rewards, dones, infos = env.step(action)
        for info in infos:
            info.get("episode", {}).pop("t", None)
        out.append(in_bytes([obs, rewards, dones, infos]))
    return out


def actions_of(env, number):
    env.action_space.seed(0)
    return [
        np.array([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(number)
    ]


def gymnasium_of(env_id, seed=1, **arguments):
    return make(env_id, num_envs=2, seed=seed, backend="gymnasium", **arguments)


def wrapped(wrap, seed):
    env = LeanVecEnv([lambda: wrap(gym.make("Pendulum-v1", max_episode_steps=20)) for _ in "ab"])
    env.seed(seed)
    return env


def stacked(seed):
    return VecFrameStack(gymnasium_of("CartPole-v1", seed), n_stack=3)
