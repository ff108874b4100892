"""Which environments EnvPool may stand in for."""

from __future__ import annotations

# EnvPool is another implementation of each simulator. An id is listed only if
# tests/envs/test_parity.py shows the same spaces, time limit, initial states, dynamics, rewards
# and terminations as gymnasium's; `make(backend="auto")` looks here, and a test reads it.
PARITY_IDS = frozenset(
    {
        "Acrobot-v1",
        "CartPole-v1",
        "MountainCar-v0",
        "MountainCarContinuous-v0",
        "Pendulum-v1",
        "HalfCheetah-v5",
        "Hopper-v5",
        "InvertedDoublePendulum-v5",
        "InvertedPendulum-v5",
        "Swimmer-v5",
        "Walker2d-v5",
    }
)
