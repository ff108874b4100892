"""Generalised advantage estimation with time limits handled in the advantage itself."""

import numpy as np


def generalised_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    next_values: np.ndarray,
    dones: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """A_t = δ_t + γλ (1 − done_t) A_{t+1}, δ_t = r_t + γ V'_t − V(s_t).

    V'_t is the value of the state that really followed: of the terminal observation where a time
    limit cut the episode, zero where it terminated. A cut episode is so bootstrapped without
    touching its rewards.

    Args:
        rewards: [T, B].
        values: V(s_t), [T, B].
        next_values: V'_t, [T, B].
        dones: Whether the episode ended with step t, for whatever reason, bool [T, B].
        gamma: Discount factor γ.
        gae_lambda: λ: 0 is the one-step advantage (low variance), 1 the Monte-Carlo one (no bias).

    Returns:
        Advantages [T, B], float32, computed in float64.

    Reference:
        Schulman et al., "High-dimensional continuous control using generalized advantage
        estimation", 2016; Pardo et al., "Time limits in reinforcement learning", 2018.
    """
    deltas = rewards + gamma * next_values.astype(np.float64) - values
    decay = gamma * gae_lambda * ~dones
    scan = _scan_columns if deltas.shape[1] <= FEW else _scan_rows
    return scan(deltas, decay).astype(np.float32)


# Up to so many environments Python's own floats are faster than NumPy's calls.
FEW = 8


def _scan_rows(deltas: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """A_t = δ_t + decay_t A_{t+1}, all environments at a time."""
    advantages = np.empty_like(deltas)
    last = np.zeros(deltas.shape[1])
    for row, delta, factor in zip(advantages[::-1], deltas[::-1], decay[::-1], strict=True):
        last = np.multiply(factor, last, out=row)
        last += delta
    return advantages


def _scan_columns(deltas: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """The same, one environment at a time."""
    columns = []
    for delta, factor in zip(deltas.T[:, ::-1].tolist(), decay.T[:, ::-1].tolist(), strict=True):
        column, last = [], 0.0
        for d, f in zip(delta, factor, strict=True):
            last = d + f * last
            column.append(last)
        columns.append(column[::-1])
    return np.array(columns).reshape(deltas.T.shape).T
