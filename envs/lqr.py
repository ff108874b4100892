"""A linear-quadratic regulator: the optimal policy and its value are known in closed form."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_discrete_are  # type: ignore[import-untyped]

LQR_ID = "npg/LQR-v0"


class LinearQuadraticRegulator(gym.Env[NDArray[np.float64], NDArray[np.float32]]):
    """Steer a linear system to the origin at little effort.

        x' = A x + B u + w,   w ~ N(0, noise_std² I),   reward = −(xᵀQx + uᵀRu)

    The return is discounted by `gamma` over an infinite horizon: an episode is truncated after
    `horizon` steps and never terminated, so a learner that bootstraps at time limits has this
    optimum:

        P = Q + γ AᵀP(A − BK),   K = (R + γ BᵀPB)⁻¹ γ BᵀPA,   u = −K x

    (Bertsekas, Dynamic Programming and Optimal Control, vol. 2, §4.2.) Actions are not clipped.

    Args:
        A: dynamics, (n, n). By default a cart on a rail, with position and velocity, 0.1 s steps.
        B: effect of the action, (n, m). By default a force on the cart.
        Q: cost of the state, (n, n), symmetric, positive semi-definite. By default the identity.
        R: cost of the action, (m, m), symmetric, positive definite. By default 0.1 of the identity.
        gamma: discount factor, in (0, 1].
        horizon: steps until truncation.
        noise_std: standard deviation of the process noise per step and coordinate.
        initial_std: standard deviation of the initial state, x₀ ~ N(0, initial_std² I).
        action_bound: largest absolute value of an action, wide enough not to matter.
        render_mode: must be None.

    Raises:
        ValueError: shapes or values that do not make a regulator.
    """

    def __init__(
        self,
        A: ArrayLike = ((1.0, 0.1), (0.0, 1.0)),
        B: ArrayLike = ((0.0,), (0.1,)),
        Q: ArrayLike | None = None,
        R: ArrayLike | None = None,
        gamma: float = 0.99,
        horizon: int = 100,
        noise_std: float = 0.0,
        initial_std: float = 1.0,
        action_bound: float = 10.0,
        render_mode: str | None = None,
    ) -> None:
        """Solve the problem; see the class."""
        self.A, self.B = np.array(A, dtype=np.float64), np.array(B, dtype=np.float64)
        if self.A.ndim != 2 or self.A.shape[0] != self.A.shape[1]:
            raise ValueError(f"A must be square, got shape {self.A.shape}")
        if self.B.ndim != 2 or self.B.shape[0] != len(self.A):
            raise ValueError(f"B must have as many rows as A {self.A.shape}, got {self.B.shape}")
        state_size, action_size = self.B.shape
        self.Q = np.eye(state_size) if Q is None else np.array(Q, dtype=np.float64)
        self.R = 0.1 * np.eye(action_size) if R is None else np.array(R, dtype=np.float64)
        _check_cost("Q", self.Q, state_size, lowest=-1e-12)
        _check_cost("R", self.R, action_size, lowest=1e-12)
        if not 0.0 < gamma <= 1.0:
            raise ValueError(f"gamma must lie in (0, 1], got {gamma}")
        if gamma == 1.0 and noise_std > 0.0:
            raise ValueError("noise costs infinitely much without discount: gamma must be below 1")
        if horizon < 1 or noise_std < 0.0 or initial_std < 0.0 or action_bound <= 0.0:
            raise ValueError("horizon and action_bound must be positive, deviations not negative")
        if render_mode is not None:
            raise ValueError("render_mode must be None: there is nothing to see")
        self.gamma, self.horizon = gamma, horizon
        self.noise_std, self.initial_std = noise_std, initial_std
        self.render_mode = None
        self.observation_space = spaces.Box(-np.inf, np.inf, (state_size,), np.float64)
        self.action_space = spaces.Box(-action_bound, action_bound, (action_size,), np.float32)
        # The discount is a scaling of the undiscounted problem's A and B.
        scale = np.sqrt(gamma)
        self.cost_to_go: NDArray[np.float64] = solve_discrete_are(
            scale * self.A, scale * self.B, self.Q, self.R
        )
        weighted = gamma * self.B.T @ self.cost_to_go
        self.optimal_gain: NDArray[np.float64] = np.linalg.solve(
            self.R + weighted @ self.B, weighted @ self.A
        )
        self._state = np.zeros(state_size)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, object]]:
        """Draw an initial state.

        Args:
            seed: of the environment's generator; None continues it.
            options: `{"state": x}` starts from x, shape (n,), instead.

        Returns:
            The state, shape (n,), and an empty info.
        """
        super().reset(seed=seed)
        self._steps = 0
        self._state = self.initial_std * self.np_random.standard_normal(len(self.A))
        if options and "state" in options:
            self._state = np.array(options["state"], dtype=np.float64).reshape(len(self.A))
        return self._state.copy(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, object]]:
        """Pay for the present state and action, and move on.

        Args:
            action: shape (m,).

        Returns:
            The next state, shape (n,); the reward; terminated, always False; truncated, True at
            step `horizon`; an empty info.
        """
        state, control = self._state, np.asarray(action, dtype=np.float64)
        reward = -float(state @ self.Q @ state + control @ self.R @ control)
        self._state = self.A @ state + self.B @ control
        if self.noise_std:
            self._state += self.noise_std * self.np_random.standard_normal(len(state))
        self._steps += 1
        return self._state.copy(), reward, False, self._steps >= self.horizon, {}

    def value(self, state: ArrayLike) -> NDArray[np.float64]:
        """Evaluate the optimal policy: expected discounted return over an infinite horizon.

        Args:
            state: shape (..., n).

        Returns:
            −xᵀPx − γ/(1−γ) noise_std² tr P, shape (...).
        """
        states = np.asarray(state, dtype=np.float64)
        cost = np.sum((states @ self.cost_to_go) * states, axis=-1)
        return np.asarray(-cost - self._noise_cost())

    @property
    def optimal_return(self) -> float:
        """Expected `value` of the initial state."""
        initial_cost = self.initial_std**2 * float(np.trace(self.cost_to_go))
        return -initial_cost - self._noise_cost()

    def _noise_cost(self) -> float:
        """Return what all future noise costs under the optimal policy."""
        if not self.noise_std:
            return 0.0
        discounted_steps = self.gamma / (1.0 - self.gamma)
        return discounted_steps * self.noise_std**2 * float(np.trace(self.cost_to_go))


def _check_cost(name: str, cost: NDArray[np.float64], size: int, lowest: float) -> None:
    """Raise ValueError unless a cost is symmetric (size, size), eigenvalues above `lowest`."""
    if cost.shape != (size, size) or not np.allclose(cost, cost.T):
        raise ValueError(f"{name} must be symmetric with shape {(size, size)}, got {cost.shape}")
    if np.linalg.eigvalsh(cost)[0] < lowest:
        raise ValueError(f"{name} has an eigenvalue below {lowest}: not a cost")


if LQR_ID not in gym.registry:
    gym.register(LQR_ID, entry_point="envs.lqr:LinearQuadraticRegulator")
