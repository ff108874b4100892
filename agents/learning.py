"""The method ``learn``, of which agents differ in two defaults."""

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback


def learning(name: str, updates: int) -> Callable[..., Any]:
    """Makes an agent's ``learn``.

    Args:
        name: Default of ``tb_log_name``.
        updates: Default of ``log_interval``.

    Returns:
        The method.
    """

    def learn(
        self: OnPolicyAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = updates,
        tb_log_name: str = name,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> OnPolicyAlgorithm:
        """Trains; arguments and callbacks are Stable-Baselines3's.

        Args:
            self: The agent.
            total_timesteps: Environment steps, rounded up to whole rollouts.
            callback: Called at every step; may stop the training.
            log_interval: Updates between log lines.
            tb_log_name: Name of the run in TensorBoard.
            reset_num_timesteps: Whether counting starts at zero.
            progress_bar: Whether to draw one.

        Returns:
            The agent.
        """
        return OnPolicyAlgorithm.learn(
            self,
            total_timesteps,
            callback,
            log_interval,
            tb_log_name,
            reset_num_timesteps,
            progress_bar,
        )

    learn.__qualname__ = f"{name}.learn"
    return learn
