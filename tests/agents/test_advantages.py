"""Advantages by hand, and against Stable-Baselines3's buffer."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import RolloutBuffer

from agents.advantages import generalised_advantages
from tests.agents.helpers import DISCRETE, VECTOR


def column(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)[:, None]


def test_by_hand_without_an_end() -> None:
    # γ = 0.5, λ = 0.5, γλ = 0.25; values 1, 2, 3, then 4 after the last step; rewards 1, 0, 2.
    # δ2 = 2 + 0.5·4 − 3 = 1          A2 = 1
    # δ1 = 0 + 0.5·3 − 2 = −0.5       A1 = −0.5 + 0.25·1     = −0.25
    # δ0 = 1 + 0.5·2 − 1 = 1          A0 = 1 + 0.25·(−0.25)  = 0.9375
    dones = np.zeros((3, 1), dtype=bool)
    result = generalised_advantages(
        column(1, 0, 2), column(1, 2, 3), column(2, 3, 4), dones, 0.5, 0.5
    )
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, column(0.9375, -0.25, 1))


def test_by_hand_termination_and_time_limit() -> None:
    # Two environments end with step 1: the first terminates (the next value is 0), the second is
    # cut by a time limit (the next value is V(terminal observation) = 6). γ = 0.5, λ = 1.
    # δ2 = 2 + 0.5·4 − 3 = 1, A2 = 1 in both.
    # first:  δ1 = 0 + 0.5·0 − 2 = −2, A1 = −2 (nothing flows back over the end)
    #         δ0 = 1 + 0.5·2 − 1 = 1,  A0 = 1 + 0.5·(−2) = 0
    # second: δ1 = 0 + 0.5·6 − 2 = 1,  A1 = 1;  A0 = 1 + 0.5·1 = 1.5
    rewards, values = column(1, 0, 2).repeat(2, 1), column(1, 2, 3).repeat(2, 1)
    next_values = np.array([[2, 2], [0, 6], [4, 4]], dtype=np.float32)
    dones = np.array([[False, False], [True, True], [False, False]])
    result = generalised_advantages(rewards, values, next_values, dones, 0.5, 1.0)
    np.testing.assert_array_equal(result, [[0, 1.5], [-2, 1], [1, 1]])


def test_limits_of_lambda() -> None:
    rng = np.random.default_rng(0)
    rewards, values, following = rng.normal(size=(3, 20, 1))
    dones = np.zeros((20, 1), dtype=bool)
    following[:-1] = values[1:]
    one_step = generalised_advantages(rewards, values, following, dones, 0.9, 0.0)
    np.testing.assert_allclose(one_step, rewards + 0.9 * following - values, rtol=1e-6)
    total, monte_carlo = following[-1], np.empty_like(rewards)
    for t in range(19, -1, -1):
        total = rewards[t] + 0.9 * total
        monte_carlo[t] = total - values[t]
    result = generalised_advantages(rewards, values, following, dones, 0.9, 1.0)
    np.testing.assert_allclose(result, monte_carlo, rtol=1e-5, atol=1e-6)


def test_arguments_are_not_changed_and_results_are_accurate() -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=(500, 2)).astype(np.float32) * 1e3 for _ in range(3)]
    copies = [a.copy() for a in arrays]
    dones = rng.random((500, 2)) < 0.01
    result = generalised_advantages(*arrays, dones, 0.999, 0.99)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    exact = generalised_advantages(*(a.astype(np.float64) for a in arrays), dones, 0.999, 0.99)
    np.testing.assert_allclose(result, exact, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (0.9, 0.0), (1.0, 1.0)])
def test_sb3_buffer_gives_the_same(seed: int, gamma: float, gae_lambda: float) -> None:
    """SB3 adds γ V(terminal observation) to the reward of a step that a time limit cut."""
    rng = np.random.default_rng(seed)
    steps, envs = 40, 3
    rewards, values, terminal = rng.normal(size=(3, steps, envs)).astype(np.float32)
    last_values = rng.normal(size=envs).astype(np.float32)
    ended = rng.random((steps, envs)) < 0.2
    cut = ended & (rng.random((steps, envs)) < 0.5)
    starts = np.concatenate([np.ones((1, envs)), ended[:-1]])

    oracle = RolloutBuffer(steps, VECTOR, DISCRETE, "cpu", gae_lambda, gamma, envs)
    for t in range(steps):
        edited = rewards[t] + gamma * np.where(cut[t], terminal[t], 0)
        numbers = (torch.tensor(values[t]), torch.zeros(envs))
        oracle.add(np.zeros((envs, 3)), np.zeros((envs, 1)), edited, starts[t], *numbers)
    oracle.compute_returns_and_advantage(torch.tensor(last_values), ended[-1])

    following = np.concatenate([values[1:], last_values[None]])
    next_values = np.where(ended, np.where(cut, terminal, 0), following).astype(np.float32)
    ours = generalised_advantages(rewards, values, next_values, ended, gamma, gae_lambda)
    np.testing.assert_allclose(ours, oracle.advantages, rtol=1e-5, atol=1e-6)
