"""Where EnvPool may stand in for gymnasium, and from how many environments it is faster."""

from __future__ import annotations

# EnvPool is another implementation of each simulator. An id is listed only if
# tests/envs/test_parity.py shows the same spaces, time limit, initial states, dynamics, rewards
# and terminations as gymnasium's; `make(backend="auto")` looks here, and the test reads it.
#
# The number is where EnvPool's fixed cost per step (about 60 µs for its queues and threads) is
# earned back, measured on two processors; the cheaper the simulator, the later.
ENVPOOL_PAYS_FROM = {
    "Acrobot-v1": 8,
    "CartPole-v1": 16,
    "MountainCar-v0": 8,
    "MountainCarContinuous-v0": 8,
    "Pendulum-v1": 8,
    "HalfCheetah-v5": 8,
    "Hopper-v5": 8,
    "InvertedDoublePendulum-v5": 8,
    "InvertedPendulum-v5": 8,
    "Swimmer-v5": 8,
    "Walker2d-v5": 8,
}
