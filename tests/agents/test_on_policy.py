"""The base class with an algorithm of one line: what it gives to any agent."""

import copy
import pickle

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from agents.on_policy import SUPPORTED_ACTIONS, OnPolicy
from agents.rollout import batch
from envs import LeanVecEnv, make
from tests.agents.helpers import (
    AGENTS,
    BOX,
    VECTOR,
    Toy,
    any_agent,
    every_variant,
    parameters,
    same,
    small,
    vector_env,
)


class Reinforce(OnPolicy):
    """The plainest agent: one gradient step on log π · A."""

    def __init__(self, policy, env, learning_rate=1e-2, n_steps=32, _init_setup_model=True, **base):
        settings = {"gamma": 0.9, "gae_lambda": 1.0, "ent_coef": 0.0, "vf_coef": 0.5}
        settings |= {"max_grad_norm": 0.5, "use_sde": False, "sde_sample_freq": -1}
        super().__init__(
            policy, env, learning_rate=learning_rate, n_steps=n_steps, **settings | base
        )
        if _init_setup_model:
            self._setup_model()

    def train(self) -> None:
        self.policy.set_training_mode(True)
        data = batch(self.rollout_buffer, self.action_space, self.device)
        log_probs = self.policy.get_distribution(data.observations).log_prob(data.actions)
        self.policy.optimizer.zero_grad()
        (-(log_probs * data.advantages).mean()).backward()
        self.policy.optimizer.step()
        self._n_updates += 1


def test_an_agent_is_a_train_method(tmp_path) -> None:
    model = Reinforce("MlpPolicy", vector_env(lambda: Toy(VECTOR, BOX), 2), seed=0, device="cpu")
    before = parameters(model)
    model.learn(64 * 3)
    assert model._n_updates == 3
    assert not same(before, parameters(model))
    model.save(tmp_path / "model")
    loaded = Reinforce.load(tmp_path / "model", env=vector_env(lambda: Toy(VECTOR, BOX), 2))
    assert same(parameters(model), parameters(loaded))
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded._n_updates == 4


def test_the_plainest_agent_learns_the_identity() -> None:
    """Reward for the action that the observation names."""

    class Identity(Toy):
        def step(self, action):
            *_, info = transition = super().step(action)
            del info
            reward = float(action == self.named)
            self.named = int(np.argmax(transition[0]))
            return transition[0], reward, *transition[2:]

        def reset(self, **kwargs):
            observation, info = super().reset(**kwargs)
            self.named = int(np.argmax(observation))
            return observation, info

    env = vector_env(lambda: Identity(death=0.0, limit=20), 4)
    settings = {"n_steps": 64, "gamma": 0.0, "policy_kwargs": {"net_arch": [32]}}
    model = Reinforce("MlpPolicy", env, learning_rate=0.03, seed=0, device="cpu", **settings)
    model.learn(64 * 4 * 60)
    observations = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    chosen = model.predict(observations, deterministic=True)[0]
    assert (chosen == observations.argmax(1)).mean() > 0.9


@any_agent
@pytest.mark.parametrize("backend", ["gymnasium", "auto"])
def test_environments_of_make(agent, backend) -> None:
    env = make("CartPole-v1", num_envs=2, seed=0, backend=backend, normalize_obs=True)
    model = small(agent, env).learn(128)
    assert model.get_vec_normalize_env() is env
    assert len(model.ep_info_buffer) > 0
    env.close()


@pytest.mark.parametrize("kind", [DummyVecEnv, LeanVecEnv])
def test_both_vectors_of_environments_give_the_same_training(kind) -> None:
    def trained(vector) -> list[torch.Tensor]:
        env = vector([lambda: Toy(VECTOR, BOX)] * 3)
        return parameters(small(AGENTS[0], env).learn(64 * 3 * 2))

    assert same(trained(kind), trained(DummyVecEnv))


def test_supported_actions() -> None:
    names = {space.__name__ for space in SUPPORTED_ACTIONS}
    assert names == {"Box", "Discrete", "MultiDiscrete", "MultiBinary"}


@every_variant
def test_optimizers_and_policy_can_be_copied_and_pickled(agent, settings) -> None:
    model = small(agent, VecNormalize(vector_env(lambda: Toy(VECTOR, BOX))), **settings)
    model.learn(64)
    for optimizer in model._optimizers().values():
        twin = copy.deepcopy(optimizer)
        assert twin.extra == optimizer.extra
        assert pickle.loads(pickle.dumps(optimizer)).extra == optimizer.extra
    copied = copy.deepcopy(model.policy)
    assert same(parameters(model), list(copied.state_dict().values()))
