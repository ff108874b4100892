"""The state of a normaliser as tensors and primitives, to be kept inside a checkpoint."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

# The key of the statistics when the observation is a single array.
SINGLE = "observation"


class Moments(TypedDict):
    """Running moments: float64 tensors, `count` of shape ()."""

    mean: torch.Tensor
    var: torch.Tensor
    count: torch.Tensor


class NormalizationState(TypedDict):
    """Everything that decides what a normaliser does next."""

    obs_rms: dict[str, Moments]
    norm_obs_keys: list[str] | None
    ret_rms: Moments
    returns: torch.Tensor
    norm_obs: bool
    norm_reward: bool
    training: bool
    clip_obs: float
    clip_reward: float
    gamma: float
    epsilon: float


_FLAGS = ("norm_obs", "norm_reward", "training")
_NUMBERS = ("clip_obs", "clip_reward", "gamma", "epsilon")


def normalization_state(vec_normalize: VecNormalize) -> NormalizationState:
    """Copy statistics and settings out of a normaliser, Stable-Baselines3's or ours.

    Args:
        vec_normalize: the normaliser.

    Returns:
        Float64 tensors, bools, floats and strings, which `torch.save` writes and
        `torch.load(weights_only=True)` reads. `obs_rms` maps the keys of a Dict observation, or
        `"observation"`, to `mean`, `var` and `count`; it is empty if observations were never
        normalised. `returns` has shape (num_envs,).
    """
    statistics = _observation_statistics(vec_normalize)
    keys = vec_normalize.norm_obs_keys
    return NormalizationState(
        obs_rms={key: _moments(rms) for key, rms in statistics.items()},
        norm_obs_keys=None if keys is None else list(keys),
        ret_rms=_moments(vec_normalize.ret_rms),
        returns=torch.tensor(vec_normalize.returns, dtype=torch.float64),
        norm_obs=bool(vec_normalize.norm_obs),
        norm_reward=bool(vec_normalize.norm_reward),
        training=bool(vec_normalize.training),
        clip_obs=float(vec_normalize.clip_obs),
        clip_reward=float(vec_normalize.clip_reward),
        gamma=float(vec_normalize.gamma),
        epsilon=float(vec_normalize.epsilon),
    )


def load_normalization_state(vec_normalize: VecNormalize, state: NormalizationState) -> None:
    """Put a saved state into a normaliser, Stable-Baselines3's or ours.

    The discounted returns in progress are taken over if the number of environments is the same;
    otherwise they start at zero, as after a `reset`.

    Args:
        vec_normalize: the normaliser, changed in place.
        state: what `normalization_state` returned.

    Raises:
        ValueError: entries are missing, or shapes differ; nothing was changed.
    """
    missing = NormalizationState.__required_keys__ - set(state)
    if missing:
        raise ValueError(f"not a normalisation state: {sorted(missing)} missing")
    statistics = _observation_statistics(vec_normalize)
    if set(statistics) != set(state["obs_rms"]):
        raise ValueError(
            f"the state normalises observations {sorted(state['obs_rms'])}, "
            f"the normaliser {sorted(statistics)}"
        )
    for key, rms in statistics.items():
        _check_shape(f"statistics of {key!r}", state["obs_rms"][key], rms)
    _check_shape("statistics of the return", state["ret_rms"], vec_normalize.ret_rms)
    for key, rms in statistics.items():
        _fill(rms, state["obs_rms"][key])
    _fill(vec_normalize.ret_rms, state["ret_rms"])
    returns = state["returns"].cpu().numpy().copy()
    same_number = returns.shape == (vec_normalize.num_envs,)
    vec_normalize.returns = returns if same_number else np.zeros(vec_normalize.num_envs)
    for name in (*_FLAGS, *_NUMBERS):
        setattr(vec_normalize, name, state[name])  # type: ignore[literal-required]


def _observation_statistics(vec_normalize: VecNormalize) -> dict[str, RunningMeanStd]:
    """Return the observation statistics by key; none if observations were never normalised."""
    # Not hasattr: it would find the statistics of another VecNormalize underneath.
    statistics = vars(vec_normalize).get("obs_rms", {})
    return statistics if isinstance(statistics, dict) else {SINGLE: statistics}


def _moments(rms: RunningMeanStd) -> Moments:
    """Copy running moments to tensors."""
    mean, var, count = (
        torch.tensor(value, dtype=torch.float64) for value in (rms.mean, rms.var, rms.count)
    )
    return Moments(mean=mean, var=var, count=count)


def _check_shape(name: str, moments: Moments, rms: RunningMeanStd) -> None:
    """Raise ValueError if saved moments do not have the shape of the running ones."""
    saved, expected = tuple(moments["mean"].shape), np.shape(rms.mean)
    if saved != expected:
        raise ValueError(f"{name}: the state has shape {saved}, the normaliser {expected}")


def _fill(rms: RunningMeanStd, moments: Moments) -> None:
    """Set running moments from saved ones."""
    rms.mean = moments["mean"].cpu().numpy().copy()
    rms.var = moments["var"].cpu().numpy().copy()
    rms.count = moments["count"].item()
