"""One call that makes a vector of seeded, monitored, possibly normalised environments."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from envs.lean import LeanVecEnv
from envs.normalize import LeanVecNormalize
from envs.parity import ENVPOOL_PAYS_FROM
from envs.pool import EnvPoolVecEnv

Backend = Literal["auto", "gymnasium", "envpool"]


def make(
    id: str | Callable[..., gym.Env],
    num_envs: int = 1,
    seed: int | None = None,
    backend: Backend = "auto",
    normalize_obs: bool = False,
    normalize_reward: bool = False,
    gamma: float = 0.99,
    **env_kwargs: object,
) -> VecEnv:
    """Make a vector of environments, ready for any Stable-Baselines3 algorithm.

    Args:
        id: a gymnasium id, or a callable that returns a new environment.
        num_envs: number of environments.
        seed: environment i is seeded with `seed + i`, its action space too; None draws a seed
            from NumPy's global state, as Stable-Baselines3 does.
        backend: "gymnasium" steps Python environments one after the other; "envpool" steps
            EnvPool's C++ ones in threads; "auto" takes EnvPool if it is installed, known to
            simulate the same thing, and faster with that many environments (`envs.parity`).
        normalize_obs: normalise observations by their running mean and standard deviation.
        normalize_reward: divide rewards by the running standard deviation of the return.
        gamma: discount factor of that return.
        **env_kwargs: passed to the environment, `render_mode` for instance; gymnasium only.

    Returns:
        A `LeanVecEnv` or an `EnvPoolVecEnv`, inside a `LeanVecNormalize` if asked for.

    Raises:
        ValueError: an unknown id or backend, a bad `num_envs` or `gamma`, or normalisation of an
            observation space that is not made of Box.
        ImportError: `backend="envpool"` without EnvPool.
    """
    if not isinstance(num_envs, int | np.integer) or num_envs < 1:
        raise ValueError(f"num_envs must be a positive integer, got {num_envs!r}")
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must lie between 0 and 1, got {gamma}")
    if backend == "auto":
        backend = "envpool" if _envpool_is_better(id, num_envs, env_kwargs) else "gymnasium"
    venv: VecEnv
    if backend == "gymnasium":
        venv = _make_gymnasium(id, int(num_envs), seed, env_kwargs)
    elif backend == "envpool":
        venv = _make_envpool(id, int(num_envs), seed, env_kwargs)
    else:
        raise ValueError(f"backend must be 'auto', 'gymnasium' or 'envpool', got {backend!r}")
    if normalize_obs:
        _check_normalizable(venv.observation_space)
    if normalize_obs or normalize_reward:
        return LeanVecNormalize(
            venv, norm_obs=normalize_obs, norm_reward=normalize_reward, gamma=gamma
        )
    return venv


def _envpool_is_better(
    id: str | Callable[..., gym.Env],
    num_envs: int,
    env_kwargs: dict[str, object],
) -> bool:
    """Decide what `backend="auto"` means; EnvPool is looked for but not imported."""
    return (
        isinstance(id, str)
        and id in ENVPOOL_PAYS_FROM
        and num_envs >= ENVPOOL_PAYS_FROM[id]
        and not env_kwargs
        and importlib.util.find_spec("envpool") is not None
    )


def _make_gymnasium(
    id: str | Callable[..., gym.Env],
    num_envs: int,
    seed: int | None,
    env_kwargs: dict[str, object],
) -> LeanVecEnv:
    """Make Python environments, seeded for their first reset."""
    # The checker verifies types at each step; time limit and reset order stay enforced.
    constructor = id if callable(id) else partial(gym.make, id, disable_env_checker=True)

    def make_one(index: int) -> gym.Env:
        env = constructor(**env_kwargs)
        if seed is not None:
            env.action_space.seed(seed + index)
        return env

    try:
        venv = LeanVecEnv([partial(make_one, index) for index in range(num_envs)])
    except gym.error.DependencyNotInstalled:
        raise  # says what to install
    except gym.error.Error as error:
        raise ValueError(
            f"id {id!r} is unknown to gymnasium ({error}): import the package that registers it, "
            "or write 'package:id'"
        ) from error
    venv.seed(seed)
    return venv


def _make_envpool(
    id: str | Callable[..., gym.Env],
    num_envs: int,
    seed: int | None,
    env_kwargs: dict[str, object],
) -> EnvPoolVecEnv:
    """Make EnvPool's environments."""
    if callable(id):
        raise ValueError("id is a callable, which EnvPool cannot run: use backend='gymnasium'")
    if env_kwargs:
        # The same name may mean something else there.
        raise ValueError(f"{sorted(env_kwargs)} need gymnasium's environment: backend='gymnasium'")
    venv = EnvPoolVecEnv(id, num_envs, seed)
    if seed is not None:
        venv.action_space.seed(seed)
    return venv


def _check_normalizable(space: spaces.Space[object]) -> None:
    """Raise ValueError if observations of this space cannot be normalised."""
    if isinstance(space, spaces.Dict):
        discrete = [key for key, part in space.items() if not isinstance(part, spaces.Box)]
        if discrete:
            raise ValueError(
                f"normalize_obs=True needs Box observations, but {discrete} are not: pass "
                "normalize_obs=False and wrap in LeanVecNormalize(venv, norm_obs_keys=[...])"
            )
    elif not isinstance(space, spaces.Box):
        raise ValueError(
            f"normalize_obs=True needs Box observations, not {space}: pass normalize_obs=False"
        )
