"""Agents up to the end of a rollout, before any update."""

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from tests.agents.helpers import DISCRETE, VECTOR, Toy, small, vector_env

# What a rollout holds beside observations, actions and rewards.
COLUMNS = ("values", "log_probs", "advantages", "returns", "episode_starts")


class Silent(BaseCallback):
    def _on_step(self) -> bool:
        return True


def collect(model, callback: BaseCallback | None = None, steps: int | None = None) -> bool:
    """One rollout, as `learn` begins it."""
    total = model.n_steps * model.n_envs
    _, callbacks = model._setup_learn(total, callback or Silent(), reset_num_timesteps=False)
    return model.collect_rollouts(
        model.env, callbacks, model.rollout_buffer, steps or model.n_steps
    )


def prepared(agent, **settings):
    """An agent after a rollout and before its update."""
    actions = settings.pop("actions", DISCRETE)
    model = small(agent, vector_env(lambda: Toy(VECTOR, actions)), **settings)
    _, callback = model._setup_learn(64)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def start(model, env) -> None:
    """Puts environments and agent to one and the same beginning."""
    env.seed(7)
    model._last_obs = env.reset()
    model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
