"""A small A2C on a toy."""

from agents import A2C
from tests.agents.helpers import BOX, VECTOR, Toy, vector_env

SMALL = {"n_steps": 5, "seed": 0, "device": "cpu"}


def a2c(actions=BOX, observations=VECTOR, policy="MlpPolicy", count=3, **settings) -> A2C:
    env = vector_env(lambda: Toy(observations, actions), count)
    return A2C(policy, env, **{**SMALL, **settings})
