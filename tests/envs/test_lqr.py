"""The regulator's closed forms against iteration and simulation."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import LinearQuadraticRegulator


def random_problem(seed: int, **settings) -> LinearQuadraticRegulator:
    rng = np.random.default_rng(seed)
    root_q, root_r = rng.normal(size=(3, 3)), rng.normal(size=(2, 2))
    return LinearQuadraticRegulator(
        A=rng.normal(size=(3, 3)) * 0.6,
        B=rng.normal(size=(3, 2)),
        Q=root_q @ root_q.T,
        R=root_r @ root_r.T + 0.1 * np.eye(2),
        **settings,
    )


def rollout(env: LinearQuadraticRegulator, gain: np.ndarray, state: np.ndarray | None) -> float:
    """Discounted return of u = −K x over one episode."""
    state, _ = env.reset(options=None if state is None else {"state": state})
    total, truncated, discount = 0.0, False, 1.0
    while not truncated:
        state, reward, _, truncated, _ = env.step(-gain @ state)
        total, discount = total + discount * reward, discount * env.gamma
    return total


@pytest.mark.parametrize("gamma", [0.9, 0.99, 1.0])
@pytest.mark.parametrize("problem", ["default", 0, 1])
def test_gain_is_the_fixed_point_of_value_iteration(problem, gamma: float) -> None:
    if problem == "default":
        env = LinearQuadraticRegulator(gamma=gamma)
    else:
        env = random_problem(problem, gamma=gamma)
    cost = np.zeros_like(env.A)
    for _ in range(2000):
        weighted = gamma * env.B.T @ cost
        gain = np.linalg.solve(env.R + weighted @ env.B, weighted @ env.A)
        cost = env.Q + gamma * env.A.T @ cost @ (env.A - env.B @ gain)
    np.testing.assert_allclose(env.optimal_gain, gain, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(env.cost_to_go, cost, rtol=1e-8, atol=1e-8)


def test_scalar_problem_by_hand() -> None:
    # A = B = Q = R = γ = 1: P = 1 + P − P²/(1+P), so P² = P + 1, the golden ratio; K = P/(1+P).
    env = LinearQuadraticRegulator(A=[[1]], B=[[1]], Q=[[1]], R=[[1]], gamma=1.0)
    golden = (1 + np.sqrt(5)) / 2
    np.testing.assert_allclose(env.cost_to_go, [[golden]], rtol=1e-12)
    np.testing.assert_allclose(env.optimal_gain, [[golden / (1 + golden)]], rtol=1e-12)


def test_value_is_the_return_of_a_long_rollout() -> None:
    env = random_problem(2, gamma=0.95, horizon=800)
    state = np.array([1.0, -2.0, 0.5])
    best = rollout(env, env.optimal_gain, state)
    np.testing.assert_allclose(env.value(state), best, rtol=1e-9)
    for direction in np.random.default_rng(0).normal(size=(5, *env.optimal_gain.shape)):
        assert rollout(env, env.optimal_gain + 0.05 * direction, state) < best
    np.testing.assert_allclose(env.value(np.stack([state, 2 * state])), [best, 4 * best])


def test_optimal_return_with_noise() -> None:
    env = LinearQuadraticRegulator(gamma=0.9, noise_std=0.3, initial_std=0.5, horizon=120)
    env.reset(seed=0)
    returns = [rollout(env, env.optimal_gain, None) for _ in range(800)]
    error = np.std(returns) / np.sqrt(len(returns))
    assert abs(np.mean(returns) - env.optimal_return) < 4 * error
    assert error < 0.04 * abs(env.optimal_return)


def test_registered_and_well_behaved() -> None:
    env = gym.make("npg/LQR-v0", horizon=5)
    check_env(env.unwrapped, skip_render_check=True)
    first, _ = env.reset(seed=3)
    again, _ = env.reset(seed=3)
    np.testing.assert_array_equal(first, again)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]


def test_the_state_handed_out_is_a_copy() -> None:
    env = LinearQuadraticRegulator()
    state, _ = env.reset(options={"state": [1.0, 0.0]})
    state[:] = 100.0
    _, reward, *_ = env.step(np.array([2.0]))
    assert reward == pytest.approx(-(1.0 + 0.1 * 4.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"A": [[1.0, 2.0]]}, "A must be square"),
        ({"B": [[1.0]]}, "B must have as many rows"),
        ({"Q": [[1.0, 1.0], [0.0, 1.0]]}, "Q must be symmetric"),
        ({"R": [[0.0]]}, "R has an eigenvalue"),
        ({"gamma": 0.0}, "gamma must lie"),
        ({"gamma": 1.0, "noise_std": 0.1}, "without discount"),
        ({"horizon": 0}, "horizon"),
        ({"render_mode": "human"}, "render_mode must be None"),
    ],
)
def test_bad_problems(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearQuadraticRegulator(**settings)
