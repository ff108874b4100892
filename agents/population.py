"""Evaluating a population: the vector of environments plays an episode for every candidate."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from agents.acting import bounding
from agents.candidates import CandidateActor, Observed
from agents.parameter_watch import watched
from npg.errors import ConfigurationError, NumericalError

if TYPE_CHECKING:
    from agents.es import ES

IDLE = -1

# An episode that has not ended by then is taken for one that never does.
ENDLESS = 1_000_000


class Seats:
    """Which environment plays for which candidate, and what it has earned.

    Args:
        candidates: Number of candidates.
        episodes: That each is to play.
        num_envs: Environments.

    Attributes:
        player: Candidate of each environment, or IDLE.
        began: Step at which its episode began, per environment; infinity where it is idle.
        rewards: Sum of the rewards of its episode, per environment.
        returns: Sum of the returns of the episodes played, per candidate.
        waiting: Episodes that have not begun.
        playing: Episodes that have, and have not ended.
    """

    def __init__(self, candidates: int, episodes: int, num_envs: int) -> None:
        self.player = [IDLE] * num_envs
        self.began = [math.inf] * num_envs
        self.rewards = np.zeros(num_envs)
        self.returns = np.zeros(candidates)
        self.waiting = candidates * episodes
        self.playing = 0

    def begin(self, env: int, step: int) -> int:
        """Gives an environment the next candidate, or none where all have played."""
        if not self.waiting:
            return IDLE
        self.player[env] = -self.waiting % len(self.returns)  # 0, 1, 2, … and again from 0
        self.began[env] = step
        self.rewards[env] = 0.0
        self.waiting -= 1
        self.playing += 1
        return self.player[env]

    def end(self, env: int) -> None:
        """Books the return of an episode."""
        self.returns[self.player[env]] += self.rewards[env]
        self.player[env], self.began[env] = IDLE, math.inf
        self.playing -= 1


def evaluate(
    model: "ES",
    env: VecEnv,
    callback: BaseCallback,
    actor: CandidateActor,
    candidates: Sequence[Tensor],
) -> np.ndarray | None:
    """Plays ``model.n_episodes`` episodes for every candidate.

    An environment takes the next candidate where an episode begins. Where none is left it plays on
    with the policy's own parameters, and what it earns counts for nobody. When nobody plays and an
    environment is within an episode, all are reset: such an episode was cut by a limit, or by the
    end of the last population or training.

    Args:
        model: The agent.
        env: Its environments.
        callback: Called at every step; its ``locals`` hold this function's variables.
        actor: Acts for the environments.
        candidates: Flat parameters [P] of the n candidates, and at the end the policy's own.

    Returns:
        Mean return of each candidate, [n], not finite where a reward, an observation or an action
        was not; None if the callback stopped the training.

    Raises:
        ConfigurationError: If an episode seems never to end.
        NumericalError: If the statistics of a ``VecNormalize`` are not finite, for good.
    """
    num_envs, normaliser = env.num_envs, model.get_vec_normalize_env()
    scaled_rewards = normaliser is not None and normaliser.norm_reward
    bounded = bounding(model.policy, model.action_space)
    limit = model.max_episode_steps or ENDLESS
    seats = Seats(len(candidates) - 1, model.n_episodes, num_envs)
    listening = watched(callback)
    new_obs = model._last_obs
    assert new_obs is not None, "No previous observation was provided"
    n_steps = idle = 0
    while True:
        if not seats.playing:
            if not seats.waiting:
                break
            if not np.all(model._last_episode_starts):
                new_obs = env.reset()
            for i in range(num_envs):
                actor.seat(i, candidates[seats.begin(i, n_steps)])

        actions = actor.act(_replaced(new_obs, seats.rewards))
        clipped_actions = bounded(_replaced(actions, seats.rewards))
        new_obs, rewards, dones, infos = env.step(clipped_actions)
        model._last_obs, model._last_episode_starts = new_obs, dones
        model.num_timesteps += num_envs
        idle += num_envs - seats.playing
        seats.rewards += normaliser.get_original_reward() if scaled_rewards else rewards

        if listening:
            callback.update_locals(locals())
            if not callback.on_step():
                return None
        n_steps += 1
        if np.count_nonzero(dones):
            ended = np.flatnonzero(dones).tolist()
            played = [i for i in ended if seats.player[i] != IDLE]
            model._update_info_buffer([infos[i] for i in played], dones[played])
            for i in played:
                seats.end(i)
            for i in ended:
                actor.seat(i, candidates[seats.begin(i, n_steps)])
        while min(seats.began) <= n_steps - limit:
            i = seats.began.index(min(seats.began))
            _check_limit(model, i)
            seats.end(i)
            actor.seat(i, candidates[IDLE])

    model.logger.record("rollout/idle_fraction", idle / (n_steps * num_envs))
    callback.update_locals(locals())
    callback.on_rollout_end()
    returns = seats.returns / model.n_episodes
    if not np.isfinite(returns).all():
        _check_normaliser(normaliser)
    return returns


def _replaced(values: Observed, rewards: np.ndarray) -> Observed:
    """Puts zeros into rows that are not finite, whose candidates then have no return, either."""
    if isinstance(values, dict):
        return {key: _replaced(column, rewards) for key, column in values.items()}
    if values.dtype.kind != "f":
        return values
    finite = np.isfinite(values)
    if np.count_nonzero(finite) == finite.size:  # half the time of all()
        return values
    wrong = ~finite.reshape(len(values), -1).all(axis=1)
    rewards[wrong] = math.nan
    return np.where(wrong.reshape(-1, *[1] * (values.ndim - 1)), 0, values)


def _check_limit(model: "ES", env: int) -> None:
    """Refuses an episode that is cut though no limit was asked for."""
    if model.max_episode_steps is None:
        raise ConfigurationError(
            f"environment {env} has not ended its episode in {ENDLESS:,} steps, and a candidate's "
            "return is that of whole episodes: wrap the environment in "
            "gymnasium.wrappers.TimeLimit, or give max_episode_steps"
        )


def _check_normaliser(normaliser: VecNormalize | None) -> None:
    """Refuses statistics that one observation spoiled: they spoil all that follow."""
    if normaliser is None or not normaliser.norm_obs:
        return
    known = normaliser.obs_rms if isinstance(normaliser.obs_rms, dict) else {"": normaliser.obs_rms}
    for key, statistics in known.items():
        if not (np.isfinite(statistics.mean).all() and np.isfinite(statistics.var).all()):
            raise NumericalError(
                f"the observation statistics{f' of {key!r}' if key else ''} of VecNormalize are "
                "not finite: an environment gave an observation that was not, and from then on "
                "all are normalised to NaN. Mend the environment and begin with a new "
                "VecNormalize; envs.LeanVecNormalize, which envs.make uses, stops at such an "
                "observation"
            )
