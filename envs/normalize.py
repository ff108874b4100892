"""Running normalisation of observations and rewards, cheap enough for one environment."""

from __future__ import annotations

import math

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from envs.normalization_state import (
    NormalizationState,
    load_normalization_state,
    normalization_state,
)
from envs.running import LeanRunningMeanStd

Observation = np.ndarray | dict[str, np.ndarray]


class LeanVecNormalize(VecNormalize):
    """`VecNormalize` with the same statistics and outputs at a fraction of the cost per step.

    (The same up to rounding: Stable-Baselines3 averages a float32 batch in float32.) It is a
    `VecNormalize` in every other respect: `sync_envs_normalization`, `save`, `load` and pickling
    work, with `RunningMeanStd` objects of either kind. A non-finite observation or reward raises
    before it can poison the statistics.

    Args:
        venv: the environments to wrap.
        training: update the statistics.
        norm_obs: normalise observations, Box or Dict.
        norm_reward: divide rewards by the standard deviation of the discounted return.
        clip_obs: largest absolute value of a normalised observation.
        clip_reward: largest absolute value of a normalised reward.
        gamma: discount factor of that return.
        epsilon: added to variances.
        norm_obs_keys: which entries of a Dict observation to normalise; all by default.

    Raises:
        ValueError: `norm_obs` with an observation space that is not Box or Dict of Box.
    """

    def __init__(
        self,
        venv: VecEnv,
        training: bool = True,
        norm_obs: bool = True,
        norm_reward: bool = True,
        clip_obs: float = 10.0,
        clip_reward: float = 10.0,
        gamma: float = 0.99,
        epsilon: float = 1e-8,
        norm_obs_keys: list[str] | None = None,
    ) -> None:
        """Wrap the environments; see the class."""
        super().__init__(
            venv,
            training=training,
            norm_obs=norm_obs,
            norm_reward=norm_reward,
            clip_obs=clip_obs,
            clip_reward=clip_reward,
            gamma=gamma,
            epsilon=epsilon,
            norm_obs_keys=norm_obs_keys,
        )
        if norm_obs:
            if isinstance(self.obs_rms, dict):
                self.obs_rms = {
                    key: LeanRunningMeanStd(shape=rms.mean.shape)
                    for key, rms in self.obs_rms.items()
                }
            else:
                self.obs_rms = LeanRunningMeanStd(shape=self.obs_rms.mean.shape)
        self.ret_rms = LeanRunningMeanStd(shape=())

    def step_wait(self) -> VecEnvStepReturn:
        """Take the step that `step_async` announced and normalise what it returns.

        Returns:
            Observations float32 (num_envs, *observation_shape), or a dictionary of them; rewards
            float32 (num_envs,); dones bool (num_envs,); infos, whose `"terminal_observation"` is
            normalised too.

        Raises:
            ValueError: a non-finite observation or reward; the statistics are as before.
        """
        obs, rewards, dones, infos = self.venv.step_wait()
        assert not isinstance(obs, tuple)  # which VecNormalize does not support
        self._check_observation(obs)
        _check_finite(rewards, "reward")
        self.old_obs, self.old_reward = obs, rewards
        if self.training:
            if self.norm_obs:
                self._update_observation(obs)
            self._update_reward(rewards)
        obs, rewards = self.normalize_obs(obs), self.normalize_reward(rewards)
        if np.count_nonzero(dones):
            for index in np.flatnonzero(dones):
                last = infos[index].get("terminal_observation")
                if last is not None:
                    infos[index]["terminal_observation"] = self.normalize_obs(last)
            self.returns[dones] = 0
        return obs, rewards, dones, infos

    def reset(self) -> Observation:
        """Start a new episode in every environment.

        Returns:
            Normalised observations (num_envs, *observation_shape), or a dictionary of them.

        Raises:
            ValueError: a non-finite observation; the statistics are as before.
        """
        obs = self.venv.reset()
        assert not isinstance(obs, tuple)  # which VecNormalize does not support
        self._check_observation(obs)
        self.old_obs = obs
        self.returns = np.zeros(self.num_envs)
        if self.training and self.norm_obs:
            self._update_observation(obs)
        return self.normalize_obs(obs)

    def normalize_obs(self, obs: Observation) -> Observation:
        """Normalise observations under the current statistics, which stay as they are.

        Args:
            obs: shape (*observation_shape), or any number of them stacked; or a dictionary.

        Returns:
            A new float32 array of that shape; with a dictionary, a new dictionary, whose entries
            outside `norm_obs_keys` are copied as they are.
        """
        if isinstance(obs, dict) or not self.norm_obs:
            return super().normalize_obs(obs)
        assert isinstance(self.obs_rms, RunningMeanStd)
        return self._normalize_obs(obs, self.obs_rms)

    def normalize_reward(self, reward: np.ndarray) -> np.ndarray:
        """Scale rewards under the current statistics, which stay as they are.

        Args:
            reward: shape (num_envs,).

        Returns:
            A new float32 array of shape (num_envs,).
        """
        if not self.norm_reward:
            return reward.astype(np.float32)
        deviation = math.sqrt(self.ret_rms.var + self.epsilon)
        if len(reward) == 1:
            # For a single number Python is five times as fast as NumPy.
            clipped = min(max(float(reward[0]) / deviation, -self.clip_reward), self.clip_reward)
            return np.array([clipped], dtype=np.float32)
        return self._clip(reward.astype(np.float64) / deviation, self.clip_reward)

    def state_dict(self) -> NormalizationState:
        """Return statistics and settings as tensors and primitives; see `normalization_state`.

        Returns:
            A new dictionary.
        """
        return normalization_state(self)

    def load_state_dict(self, state: NormalizationState) -> None:
        """Take over statistics and settings; see `load_normalization_state`.

        Args:
            state: what `state_dict` returned.

        Raises:
            ValueError: it does not fit the observation space; nothing was changed.
        """
        load_normalization_state(self, state)

    def _normalize_obs(self, obs: np.ndarray, obs_rms: RunningMeanStd) -> np.ndarray:
        """Subtract the mean, divide by the standard deviation, clip."""
        # In place after one conversion: operations on mixed types cost twice as much.
        scaled = obs.astype(np.float64)
        scaled -= obs_rms.mean
        scaled /= np.sqrt(obs_rms.var + self.epsilon)
        return self._clip(scaled, self.clip_obs)

    @staticmethod
    def _clip(values: np.ndarray, bound: float) -> np.ndarray:
        """Clip to ±bound, changing `values`, and return them in single precision."""
        # np.clip alone would cost more than the rest of a normalisation.
        np.maximum(values, -bound, out=values)
        np.minimum(values, bound, out=values)
        return values.astype(np.float32)

    def _check_observation(self, obs: Observation) -> None:
        """Raise ValueError if what would be normalised is not finite."""
        if not self.norm_obs:
            return
        if isinstance(obs, dict):
            for key in self.obs_rms:
                _check_finite(obs[key], f"observation {key!r}")
        else:
            _check_finite(obs, "observation")

    def _update_observation(self, obs: Observation) -> None:
        """Enter observations into the statistics."""
        if isinstance(obs, dict):
            for key, rms in self.obs_rms.items():
                rms.update(obs[key])
        else:
            self.obs_rms.update(obs)


def normalizer_from_state(venv: VecEnv, state: NormalizationState) -> LeanVecNormalize:
    """Wrap environments in a normaliser that goes on from a saved state.

    Args:
        venv: environments without a normaliser.
        state: what `normalization_state` returned.

    Returns:
        The normaliser, with the saved settings (`training` included).

    Raises:
        ValueError: `venv` is normalised already, or the state does not fit its observation space.
    """
    if unwrap_vec_normalize(venv) is not None:
        raise ValueError("the environments are normalised already: use load_normalization_state")
    vec_normalize = LeanVecNormalize(
        venv, norm_obs=bool(state["obs_rms"]), norm_obs_keys=state["norm_obs_keys"]
    )
    load_normalization_state(vec_normalize, state)
    return vec_normalize


def _check_finite(values: np.ndarray, name: str) -> None:
    """Raise ValueError that names the first environment with a value that spoils a variance.

    Args:
        values: shape (num_envs, ...).
        name: what they are.

    Raises:
        ValueError: a value is not a number, infinite, or has an infinite square.
    """
    if values.dtype.kind != "f":
        return
    # A sum of squares is finite only if every term is, and a variance needs squares.
    if math.isfinite(np.vdot(values, values)):
        return
    # In single precision it overflows long before a variance does, hence the second look.
    with np.errstate(over="ignore"):
        squares = np.square(values.astype(np.float64)).reshape(len(values), -1).sum(axis=1)
    bad = np.flatnonzero(~np.isfinite(squares))
    if len(bad):
        raise ValueError(
            f"non-finite {name} (or its square is) from environment index {bad[0]} "
            f"of {len(values)}: {values[bad[0]]}"
        )
