"""gSDE through the NumPy twin over whole trainings: Stable-Baselines3's numbers, and copies."""

import copy

import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from agents import A2C, ACKTR, PPO, TRPO
from agents.acting import mirrored_layers
from tests.agents.checkpoints import some_observations
from tests.agents.helpers import BOX, VECTOR, Toy, finite, parameters, same, vector_env
from tests.pairs import pairs

SDE = {"use_sde": True, "sde_sample_freq": 5}
STEPS = 32


def env_of(count: int):
    return vector_env(lambda: Toy(VECTOR, BOX), count)


def model_of(agent, count: int = 2, policy_kwargs=None, **settings):
    arguments = {"n_steps": STEPS, "seed": 0, "device": "cpu", **SDE, **settings}
    if agent.__name__ == "PPO":
        arguments |= {"batch_size": 16, "n_epochs": 2}
    if agent is TRPO:
        arguments |= {"batch_size": 16, "n_critic_updates": 2, "kl_reduction": "joint"}
    policy_kwargs = {"net_arch": [8], **(policy_kwargs or {})}
    return agent("MlpPolicy", env_of(count), policy_kwargs=policy_kwargs, **arguments)


class Evaluating(BaseCallback):
    """What the policy answers at both ends of a rollout, for one observation and for several.

    The first end is after its first step: Stable-Baselines3 draws matrices before it tells of a
    rollout, we afterwards.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[np.ndarray] = []
        self.began = False

    def _on_rollout_start(self) -> None:
        self.began = True

    def _answer(self) -> None:
        for rows in (1, self.model.n_envs):
            for deterministic in (False, True):
                answer, _ = self.model.predict(some_observations(rows), deterministic=deterministic)
                self.answers.append(answer)

    def _on_rollout_end(self) -> None:
        self._answer()

    def _on_step(self) -> bool:
        if self.began:
            self.began = False
            self._answer()
        return True


def learn(model, rollouts: int = 3):
    """Trains on; what is to be the same for two agents that do the same."""
    callback = Evaluating()
    model.learn(rollouts * STEPS * model.n_envs, callback, reset_num_timesteps=False)
    return [*callback.answers, *parameters(model), torch.rand(3)]


def assert_same(ours, theirs) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


def sb3s(agent, **settings):
    """The agent of that name in Stable-Baselines3."""
    return model_of(getattr(stable_baselines3, agent.__name__), **settings)


VARIANTS = {
    "one environment": {"count": 1},
    "two": {},
    "drawn once a rollout": {"sde_sample_freq": -1},
    "squashed": {"policy_kwargs": {"squash_output": True}},
    "one deviation a feature": {"policy_kwargs": {"full_std": False}},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("agent", [A2C, PPO])
def test_trainings_are_stable_baselines3s(agent, variant: str) -> None:
    ends = []
    for make in (model_of, sb3s):
        model = make(agent, **VARIANTS[variant])
        before = parameters(model)
        ends.append([*before, *learn(model)])
        assert not same(before, parameters(model))
    assert_same(*ends)


@pytest.mark.parametrize("agent", [A2C, ACKTR, TRPO])
def test_checkpoints_in_between_change_nothing_of_that(agent, tmp_path, monkeypatch) -> None:
    """The oracle is the same agent that acts through Stable-Baselines3's forward pass."""
    ends = []
    for path in (tmp_path / "ours", tmp_path / "sb3"):
        if path.name == "sb3":
            monkeypatch.setattr("agents.collecting.mirrored", lambda *_: None)
        model = model_of(agent)
        first = learn(model, 2)
        model.save(path)
        env = env_of(2)
        env.seed(5)
        loaded = agent.load(path, env)
        ends.append([*first, *learn(loaded, 2)])
        assert loaded.num_timesteps == 4 * STEPS * 2
        assert not same(parameters(model), parameters(loaded))
    assert_same(*ends)


@pytest.mark.parametrize(
    *pairs(
        agent=[A2C, ACKTR, PPO, TRPO],
        freq=[-1, 5],
        activation={"mirrored": nn.Tanh, "own forward": nn.ELU},
    )
)
def test_a_copy_of_the_policy_acts_as_the_policy_does(agent, freq: int, activation) -> None:
    """Which after a training Stable-Baselines3's own cannot: its noise and loss keep graphs."""
    model = model_of(agent, sde_sample_freq=freq, policy_kwargs={"activation_fn": activation})
    assert (mirrored_layers(model.policy, VECTOR) is not None) == (activation is nn.Tanh)
    model.learn(2 * STEPS * 2)
    twin = copy.deepcopy(model.policy)
    assert finite(model)
    assert same(parameters(model), list(twin.state_dict().values()))
    for rows in (1, 2):
        for deterministic in (True, False):
            actions, copied = (
                policy.predict(some_observations(rows), deterministic=deterministic)[0]
                for policy in (model.policy, twin)
            )
            np.testing.assert_array_equal(actions, copied)
    noise = twin.action_dist.exploration_mat
    assert noise is not model.policy.action_dist.exploration_mat
