"""A small A2C on a toy, and Stable-Baselines3's beside it."""

import copy

import pytest
import stable_baselines3
import torch
from gymnasium import spaces

from agents import A2C
from tests.agents.helpers import BOX, VECTOR, Toy, vector_env
from tests.agents.rollouts import collect

SMALL = {"n_steps": 5, "seed": 0, "device": "cpu"}


def a2c(actions=BOX, observations=VECTOR, policy="MlpPolicy", count=3, **settings) -> A2C:
    env = vector_env(lambda: Toy(observations, actions), count)
    return A2C(policy, env, **{**SMALL, **settings})


def oracle_of(model: A2C, **settings) -> stable_baselines3.A2C:
    """Stable-Baselines3's A2C with the same parameters, optimizer state and rollout."""
    policy = "MultiInputPolicy" if isinstance(model.observation_space, spaces.Dict) else "MlpPolicy"
    policy = "CnnPolicy" if len(model.observation_space.shape or ()) == 3 else policy
    given = {k: v for k, v in model.policy_kwargs.items() if k != "use_sde"}
    theirs = stable_baselines3.A2C(
        settings.pop("policy", policy),
        model.env,
        **{**SMALL, **settings, "policy_kwargs": given},
    )
    theirs.policy.load_state_dict(model.policy.state_dict())
    theirs.policy.optimizer.load_state_dict(copy.deepcopy(model.policy.optimizer.state_dict()))
    theirs._setup_learn(100)
    return theirs


def train_both(model: A2C, theirs: stable_baselines3.A2C, updates: int = 3) -> None:
    """Some updates, each on a rollout that ours collected; compares parameters and logs."""
    for _ in range(updates):
        collect(model)
        ours, buffer = model.rollout_buffer, theirs.rollout_buffer
        buffer.reset()
        for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
            setattr(buffer, name, copy.deepcopy(getattr(ours, name)))
        buffer.pos, buffer.full = ours.pos, True
        if hasattr(model.policy, "reset_noise") and model.use_sde:
            theirs.policy.action_dist.exploration_mat = model.policy.action_dist.exploration_mat
        model.train()
        theirs.train()
        mine = model.policy.state_dict()
        for name, value in theirs.policy.state_dict().items():
            torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=1e-6, msg=name)
    ours, other = (
        [dict(agent.policy.optimizer.state.get(p, {})) for p in agent.policy.parameters()]
        for agent in (model, theirs)
    )
    torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-6)
    logged = model.logger.name_to_value
    for name, value in theirs.logger.name_to_value.items():
        if name.startswith("train/") and name != "train/n_updates":
            assert logged[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
