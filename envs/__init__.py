"""Environments: made, vectorised, normalised; and small ones whose optimum is known.

    from envs import make
    venv = make("HalfCheetah-v5", num_envs=8, seed=0, normalize_obs=True)
    obs = venv.reset(); obs, rewards, dones, infos = venv.step(actions)

The result is a Stable-Baselines3 `VecEnv`. EnvPool is imported when it is first used, not here.
"""

import envs.wrapper_states  # noqa: F401 - makes them known
from envs.lean import LeanVecEnv
from envs.lqr import LinearQuadraticRegulator
from envs.making import make
from envs.metric_bandit import MetricBandit, MetricBanditVecEnv
from envs.normalization_state import load_normalization_state, normalization_state
from envs.normalize import LeanVecNormalize, normalizer_from_state
from envs.pool import EnvPoolVecEnv

__all__ = [
    "EnvPoolVecEnv",
    "LeanVecEnv",
    "LeanVecNormalize",
    "LinearQuadraticRegulator",
    "MetricBandit",
    "MetricBanditVecEnv",
    "load_normalization_state",
    "make",
    "normalization_state",
    "normalizer_from_state",
]
