"""Collecting a rollout at little more than the environments' own cost."""

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from agents.acting import bounding, mirror_of, mirrored
from agents.exploration import reset_noise
from agents.parameter_watch import ParameterWatch
from agents.plain_heads import head_of
from agents.plain_networks import (
    Layers,
    output_of,
    plain_features,
    plain_layers,
)
from agents.predictions import in_chunks, rows, stacked, values_of
from agents.rollout import (
    DictRollout,
    Observations,
    Rollout,
    flat_actions,
    flat_observations,
    row_setter,
)
from npg import ranks
from npg.errors import NumericalError

if TYPE_CHECKING:
    from agents.on_policy import OnPolicy


def collect(
    model: "OnPolicy",
    env: VecEnv,
    callback: BaseCallback,
    rollout_buffer: Rollout | DictRollout,
    n_rollout_steps: int,
) -> bool:
    """Fills a rollout; what callbacks, loggers and buffers see is as in Stable-Baselines3.

    Args:
        model: The agent that acts.
        env: Environments to step.
        callback: Called at every step; its ``locals`` hold this function's variables.
        rollout_buffer: Where the samples go.
        n_rollout_steps: Steps per environment.

    Returns:
        False if the callback asked to stop, and then the rollout is incomplete.

    Raises:
        NumericalError: If an observation or a reward is not finite.
    """
    policy, space = model.policy, model.action_space
    assert model._last_obs is not None, "No previous observation was provided"
    actor, critic = plain_layers(policy, model.observation_space)
    if policy.training or actor is None or critic is None:  # plain layers have one mode
        policy.set_training_mode(False)
    rollout_buffer.reset()
    callback.on_rollout_start()  # before anything is drawn, so that a checkpoint can be saved there
    if model.use_sde:
        with torch.no_grad():  # matrices that only act need no graph; one could not be copied
            policy.reset_noise(env.num_envs)

    num_envs = env.num_envs
    steps_of_all = num_envs * ranks.count()
    layers = mirrored(policy, actor)
    mirror = None if layers is None else mirror_of(policy, layers, num_envs, n_rollout_steps)
    watch = ParameterWatch(policy, callback)
    watched = watch.active  # somebody looks at every step
    evaluated = 0  # steps whose values and log-probabilities are known
    store_observation = row_setter(rollout_buffer)
    single, step = num_envs == 1, env.step
    actions_of = rollout_buffer.actions.reshape(-1, num_envs, *space.shape)
    rewards_of, starts_of = rollout_buffer.rewards, rollout_buffer.episode_starts
    if single:  # a row less to index
        actions_of, rewards_of = actions_of[:, 0], rewards_of[:, 0]
    bounded = bounding(policy, space)
    cut: list[tuple[int, int]] = []  # (step, environment) at which a time limit cut an episode
    final_observations: list[np.ndarray | dict[str, np.ndarray]] = []

    # A step of CartPole takes 10 µs, a store into an array 0.2: what can wait is not in this loop.
    sample = None if mirror is None else mirror.sample
    draw_noise = partial(reset_noise, policy)
    if mirror is None:
        draw_noise = torch.no_grad()(policy.reset_noise)
    new_obs = model._last_obs
    starts_of[0], starts_of[1:] = model._last_episode_starts, False
    n_steps = 0
    while n_steps < n_rollout_steps:
        row = store_observation(n_steps, new_obs)
        if model.use_sde and model.sde_sample_freq > 0 and n_steps % model.sde_sample_freq == 0:
            draw_noise(num_envs)
        if sample is not None:
            actions = sample(n_steps, row)
        else:
            with torch.no_grad():
                obs_tensor = obs_as_tensor(new_obs, model.device)
                action_tensor, values, log_probs = policy(obs_tensor)
            rollout_buffer.values[n_steps] = values.flatten().cpu().numpy()
            rollout_buffer.log_probs[n_steps] = log_probs.cpu().numpy()
            actions = action_tensor.cpu().numpy()

        clipped_actions = bounded(actions)
        new_obs, rewards, dones, infos = step(clipped_actions)
        model.num_timesteps += steps_of_all

        if watched:
            callback.update_locals(locals())
            if not callback.on_step():
                return False
        if single:  # half the time of rows
            actions_of[n_steps], rewards_of[n_steps] = actions[0], rewards[0]
        else:
            actions_of[n_steps], rewards_of[n_steps] = actions, rewards
        if dones[0] if single else np.count_nonzero(dones):  # any() takes 4 times as long
            starts_of[n_steps + 1 : n_steps + 2] = dones
            model._update_info_buffer(infos, dones)
            for i in np.flatnonzero(dones):
                if infos[i].get("TimeLimit.truncated") and (
                    infos[i].get("terminal_observation") is not None
                ):
                    cut.append((n_steps, i))
                    final_observations.append(infos[i]["terminal_observation"])
        n_steps += 1
        if watched and mirror is not None and watch.changed():
            with watch.as_before():
                _evaluate(model, rollout_buffer, evaluated, n_steps, actor, critic)
            evaluated = n_steps
            watch.remember()
            mirror.read()
        model._last_obs, model._last_episode_starts = new_obs, dones

    rollout_buffer.pos = n_steps
    rollout_buffer.full = n_steps == rollout_buffer.buffer_size
    _check_finite(rollout_buffer)
    if mirror is not None:
        _evaluate(model, rollout_buffer, evaluated, n_steps, actor, critic)
    if cut:
        finals = values_of(policy, stacked(final_observations, model.device), critic)
        _check_values(finals, "terminal observation", cut)
        rollout_buffer.bootstrap[tuple(zip(*cut, strict=True))] = finals.cpu().numpy()
    last_values = values_of(policy, obs_as_tensor(new_obs, model.device), critic)
    _check_values(last_values, "last observation", [(n_steps, i) for i in range(num_envs)])
    rollout_buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)

    callback.update_locals(locals())
    callback.on_rollout_end()
    return True


@torch.no_grad()
def _evaluate(
    model: "OnPolicy",
    rollout: Rollout | DictRollout,
    start: int,
    stop: int,
    actor: Layers,
    critic: Layers | None,
) -> None:
    """Fills in the values and log-probabilities of steps that the mirror took, in batches."""
    if start == stop:
        return
    policy = model.policy
    observations = flat_observations(rollout, start, stop, model.device)
    actions = flat_actions(rollout, start, stop, model.action_space, model.device)
    shape = (stop - start, rollout.n_envs)
    values = values_of(policy, observations, critic)
    rollout.values[start:stop] = values.cpu().numpy().reshape(shape)
    log_probs, first = [], 0
    for piece in in_chunks(observations):
        last = first + rows(piece)
        log_probs.append(_log_probs(policy, actor, piece, actions[first:last]))
        first = last
    rollout.log_probs[start:stop] = torch.cat(log_probs).cpu().numpy().reshape(shape)


def _log_probs(
    policy: ActorCriticPolicy, actor: Layers, observations: Observations, actions: torch.Tensor
) -> torch.Tensor:
    features = plain_features(policy, observations)
    if isinstance(policy.action_dist, StateDependentNoiseDistribution):  # its deviations have φ(s)
        latent = output_of(actor[:-1], features)
        return policy._get_action_dist_from_latent(latent).log_prob(actions)
    return head_of(policy).log_probs(output_of(actor, features), actions)


def _check_values(values: torch.Tensor, what: str, places: list[tuple[int, int]]) -> None:
    """Refuses values that are no numbers, as those of observations that are none."""
    for value, (step, env) in zip(values.tolist(), places, strict=True):
        if not math.isfinite(value):
            raise NumericalError(
                f"the value of the {what} of environment {env} at step {step} of this rollout is "
                "not finite: the update was not made. Check the environment's observations"
            )


def _check_finite(rollout: Rollout | DictRollout) -> None:
    """Refuses what the environments should not have returned, by step and environment."""
    columns = (
        rollout.observations
        if isinstance(rollout, DictRollout)
        else {"observation": rollout.observations}
    )
    for name, column in {**columns, "reward": rollout.rewards}.items():
        column = column[: rollout.pos]
        if column.dtype.kind == "f" and not np.isfinite(column.sum(dtype=np.float64)):
            wrong = np.argwhere(~np.isfinite(column))
            if len(wrong):
                step, env = wrong[0][:2]
                raise NumericalError(
                    f"{name} of environment {env} at step {step} of this rollout is not finite "
                    f"({len(wrong)} such numbers in it): the update was not made, and the "
                    "parameters are as before. Check the environment, or clip and mask its output"
                )
