"""Agents reach optima that are known."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy

from agents import A2C, ACKTR, NPG, PPO, REINFORCE, TRPO
from envs import LinearQuadraticRegulator, make
from tests.agents.helpers import (
    AGENTS,
    DISCRETE,
    MULTI_BINARY,
    MULTI_DISCRETE,
    Toy,
    both_agents,
    record_kl,
    small,
    vector_env,
)
from tests.pairs import pairs

# What they learn by is in the tests of its own.
pytestmark = pytest.mark.uncounted


def linear_agent(agent, env, gamma: float, **settings):
    """A policy u = −K x + b, and a value that can be quadratic."""
    own = {"critic": "gauss-newton", "cg_damping": 1e-3}
    if agent is ACKTR:
        own = {"critic_steps": 5, "statistics_interval": 1, "inverse_interval": 1}
        own["learning_rate"] = 1.0
    settings = {
        "n_steps": 50,
        "gamma": gamma,
        "target_kl": 0.05,
        **own,
        "policy_kwargs": {"net_arch": {"pi": [], "vf": [32]}, "log_std_init": -0.5},
        **settings,
    }
    return small(agent, env, **settings)


def gain_of(model) -> np.ndarray:
    return -model.policy.action_net.weight.detach().numpy().astype(np.float64)


def cost(problem: LinearQuadraticRegulator, gain: np.ndarray) -> float:
    """tr P of u = −K x: P = Q + KᵀRK + γ (A − BK)ᵀ P (A − BK), by iteration."""
    closed, value = problem.A - problem.B @ gain, np.zeros_like(problem.A)
    for _ in range(2000):
        value = problem.Q + gain.T @ problem.R @ gain + problem.gamma * closed.T @ value @ closed
    return float(np.trace(value))


@pytest.mark.parametrize("agent", [*AGENTS, ACKTR])
def test_the_optimal_gain_of_a_scalar_regulator(agent) -> None:
    # x' = x + u, reward −(x² + u²), γ = 0.9: K* = 0.588, P* = 1.588; doing nothing costs
    # 1 / (1 − 0.9) = 10. The cost is flat at its minimum: P(K) = (1 + K²) / (1 − 0.9 (1 − K)²) is
    # within 2 % of P* for 0.49 < K < 0.69, and the gradient of 400 samples sees no less.
    problem = {"A": [[1.0]], "B": [[1.0]], "R": [[1.0]], "gamma": 0.9, "horizon": 10}
    problem["action_bound"] = 50.0
    regulator = LinearQuadraticRegulator(**problem)
    env = make(LinearQuadraticRegulator, num_envs=8, seed=0, **problem)
    model = linear_agent(agent, env, gamma=0.9)
    assert cost(regulator, gain_of(model)) > 5 * cost(regulator, regulator.optimal_gain)
    model.learn(8 * 50 * 25)
    np.testing.assert_allclose(gain_of(model), regulator.optimal_gain, atol=0.1)
    assert cost(regulator, gain_of(model)) < 1.02 * cost(regulator, regulator.optimal_gain)
    assert abs(model.policy.action_net.bias.item()) < 0.1
    # No noise is best, and the policy finds out.
    assert model.policy.log_std.item() < -2


@pytest.mark.slow
@both_agents
def test_the_optimal_gain_of_a_cart(agent) -> None:
    """Two states; 60 updates come within a few percent of the optimal cost, 16 % of the gain."""
    problem = {"gamma": 0.9, "horizon": 25, "action_bound": 50.0}
    regulator = LinearQuadraticRegulator(**problem)
    env = make(LinearQuadraticRegulator, num_envs=16, seed=0, **problem)
    model = linear_agent(agent, env, gamma=0.9)
    model.learn(16 * 50 * 60)
    np.testing.assert_allclose(gain_of(model), regulator.optimal_gain, rtol=0.25)
    assert cost(regulator, gain_of(model)) < 1.05 * cost(regulator, regulator.optimal_gain)


@pytest.mark.slow
def test_acktr_comes_near_the_optimal_cost_of_a_cart() -> None:
    problem = {"gamma": 0.9, "horizon": 25, "action_bound": 50.0}
    regulator = LinearQuadraticRegulator(**problem)
    env = make(LinearQuadraticRegulator, num_envs=16, seed=0, **problem)
    model = linear_agent(ACKTR, env, gamma=0.9)
    model.learn(16 * 50 * 100)
    assert cost(regulator, gain_of(model)) < 1.05 * cost(regulator, regulator.optimal_gain)


class Identity(Toy):
    """Reward for the action that the observation shows; each step is an episode of its own."""

    def __init__(self, action_space: spaces.Space) -> None:
        shape = {"Discrete": (3,), "MultiDiscrete": (9,), "MultiBinary": (3,)}
        space = spaces.Box(-1, 1, shape[type(action_space).__name__], np.float32)
        super().__init__(space, action_space, limit=20, death=0.0)

    def _observe(self) -> np.ndarray:
        space = self.action_space
        if isinstance(space, spaces.MultiBinary):
            self.wanted = self.np_random.integers(0, 2, space.n)
            return self.wanted.astype(np.float32)
        sizes = np.atleast_1d(space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n)
        self.wanted = self.np_random.integers(0, sizes)
        shown = [np.eye(n)[k] for n, k in zip(sizes, self.wanted, strict=True)]
        self.hint = 0.0
        return np.concatenate(shown).astype(np.float32)

    def step(self, action):
        self.hint = 0.0
        right = float(np.mean(np.atleast_1d(action) == self.wanted))
        observation, _, *rest = super().step(action)
        return observation, right, *rest


@pytest.mark.parametrize(
    *pairs(
        agent=AGENTS,
        critic=["adam", "gauss-newton"],
        actions={"one": DISCRETE, "many": MULTI_DISCRETE, "binary": MULTI_BINARY},
    )
)
def test_the_identity_is_learned(agent, critic, actions) -> None:
    env = vector_env(lambda: Identity(actions), 4)
    model = small(agent, env, critic=critic, gamma=0.0, learning_rate=0.01, target_kl=0.03)
    model.learn(64 * 4 * 12)
    judge = vector_env(lambda: Identity(actions))
    with pytest.warns(UserWarning, match="Monitor"):
        mean, _ = evaluate_policy(model, judge, n_eval_episodes=10)
    assert mean > 0.9 * 20  # by chance: 6.7, 7.2 and 10


@pytest.mark.parametrize(
    ("agent", "updates", "settings"),
    [
        pytest.param(A2C, 90, {"learning_rate": 0.005}, id="A2C"),
        pytest.param(ACKTR, 30, {"target_kl": 0.03}, id="ACKTR"),
        pytest.param(PPO, 20, {"learning_rate": 0.005, "n_epochs": 5}, id="PPO"),
        pytest.param(REINFORCE, 90, {"learning_rate": 0.01}, id="REINFORCE"),
    ],
)
@pytest.mark.parametrize(
    "actions", [DISCRETE, MULTI_DISCRETE, MULTI_BINARY], ids=["one", "many", "binary"]
)
def test_actor_critics_learn_the_identity(agent, updates, settings, actions) -> None:
    env = vector_env(lambda: Identity(actions), 8)
    model = small(agent, env, n_steps=8, gamma=0.0, **settings)
    model.learn(8 * 8 * updates)
    with pytest.warns(UserWarning, match="Monitor"):
        mean, _ = evaluate_policy(model, vector_env(lambda: Identity(actions)), n_eval_episodes=10)
    assert mean > 0.9 * 20


def test_a_nearly_deterministic_policy_is_not_thrown_away() -> None:
    """Its Fisher matrix vanishes, and the step of the quadratic model is arbitrarily long."""
    settings = {"gamma": 0.0, "target_kl": 0.05, "cg_damping": 0.01, "learning_rate": 0.01}
    model = small(NPG, vector_env(lambda: Identity(DISCRETE), 4), **settings)
    divergences = record_kl(model)
    model.learn(64 * 4 * 40)
    assert 0.05 < max(divergences) <= 10 * 0.05


@pytest.mark.slow
@both_agents
@pytest.mark.parametrize("critic", ["adam", "gauss-newton"])
def test_cart_pole_is_solved(agent, critic) -> None:
    env = make("CartPole-v1", num_envs=8, seed=0, backend="gymnasium")
    settings = {"kl_reduction": "joint"} if agent is TRPO else {}
    model = agent("MlpPolicy", env, n_steps=256, critic=critic, seed=0, device="cpu", **settings)
    model.learn(150_000)
    mean, _ = evaluate_policy(
        model, make("CartPole-v1", num_envs=1, seed=1000, backend="gymnasium"), n_eval_episodes=20
    )
    assert mean >= 475  # gymnasium's threshold; the most is 500
    assert all(bool(torch.isfinite(p).all()) for p in model.policy.parameters())


ACKTR_SETTINGS = {"n_steps": 32, "target_kl": 0.01, "gae_lambda": 0.98, "critic_steps": 3}


PPO_SETTINGS = {"n_steps": 128, "batch_size": 256, "learning_rate": 1e-3}
REINFORCE_SETTINGS = {"n_steps": 64, "normalize_advantage": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "steps", "settings"),
    [
        pytest.param(A2C, 200_000, {}, id="A2C"),
        pytest.param(ACKTR, 100_000, ACKTR_SETTINGS, id="ACKTR"),
        pytest.param(PPO, 45_000, PPO_SETTINGS, id="PPO"),
        pytest.param(REINFORCE, 120_000, REINFORCE_SETTINGS, id="REINFORCE"),
    ],
)
def test_actor_critics_solve_cart_pole(agent, steps, settings) -> None:
    env = make("CartPole-v1", num_envs=8, seed=0, backend="gymnasium")
    model = agent("MlpPolicy", env, seed=0, device="cpu", **settings).learn(steps)
    mean, _ = evaluate_policy(
        model, make("CartPole-v1", num_envs=1, seed=1000, backend="gymnasium"), n_eval_episodes=20
    )
    assert mean >= 475
