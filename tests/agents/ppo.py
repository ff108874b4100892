"""A small PPO on a toy."""

from agents import PPO
from tests.agents.helpers import BOX, VECTOR, Toy, vector_env

# A rate at which ratios leave the clipping interval within an update.
SMALL = {"n_steps": 16, "batch_size": 12, "n_epochs": 3, "learning_rate": 3e-3}


def ppo(actions=BOX, observations=VECTOR, policy="MlpPolicy", count=3, **settings) -> PPO:
    env = vector_env(lambda: Toy(observations, actions), count)
    return PPO(policy, env, **{**SMALL, "seed": 0, "device": "cpu", **settings})
