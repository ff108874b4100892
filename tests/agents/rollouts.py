"""Agents up to the end of a rollout, before any update."""

from stable_baselines3.common.callbacks import BaseCallback


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
