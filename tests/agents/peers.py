"""Stable-Baselines3's agent beside one of ours, on the same rollouts."""

import copy

import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents.on_policy import OnPolicy
from tests.agents.rollouts import collect


def oracle_of(model: OnPolicy, peer: str | None = None, **settings) -> OnPolicyAlgorithm:
    """Stable-Baselines3's agent, of the same name if none is given, in the same state."""
    policy = "MultiInputPolicy" if isinstance(model.observation_space, spaces.Dict) else "MlpPolicy"
    policy = "CnnPolicy" if len(model.observation_space.shape or ()) == 3 else policy
    given = {k: v for k, v in model.policy_kwargs.items() if k != "use_sde"}
    settings = {"n_steps": model.n_steps, "seed": 0, "device": "cpu", **settings}
    theirs = getattr(stable_baselines3, peer or type(model).__name__)(
        settings.pop("policy", policy), model.env, **{**settings, "policy_kwargs": given}
    )
    theirs.policy.load_state_dict(model.policy.state_dict())
    theirs.policy.optimizer.load_state_dict(copy.deepcopy(model.policy.optimizer.state_dict()))
    theirs._setup_learn(100)
    return theirs


def train_both(model: OnPolicy, theirs: OnPolicyAlgorithm, updates: int = 3) -> None:
    """Some updates, each on a rollout that ours collected; compares parameters and logs."""
    counted = model._n_updates - theirs._n_updates  # one of them may have been loaded
    for update in range(updates):
        collect(model)
        ours, buffer = model.rollout_buffer, theirs.rollout_buffer
        buffer.reset()
        for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
            setattr(buffer, name, copy.deepcopy(getattr(ours, name)))
        buffer.pos, buffer.full = ours.pos, True
        if hasattr(model.policy, "reset_noise") and model.use_sde:
            theirs.policy.action_dist.exploration_mat = model.policy.action_dist.exploration_mat
        for agent in (model, theirs):
            np.random.seed(update)  # noqa: NPY002 - SB3 draws from it
            agent.train()
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
    assert model._n_updates - theirs._n_updates == counted
