"""Which attributes of gymnasium's environments and wrappers are their state.

All other attributes are settings, which are compared instead of given back; so one that is missing
here leads to a refusal, never to a run that goes on wrongly.
"""

from __future__ import annotations

# Of every environment: attributes of gymnasium.Env.
_GENERATOR = {"_np_random", "_np_random_seed"}

# By the module in which environments are defined.
_ENVIRONMENTS = {
    "gymnasium.envs.classic_control": {"state", "steps_beyond_terminated", "last_u"},
    "gymnasium.envs.toy_text": {
        *("s", "lastaction", "fickle_step", "taxi_orientation"),
        *("player", "dealer", "dealer_top_card_suit", "dealer_top_card_value_str"),
    },
    # Pusher writes each episode's beginning into init_qpos.
    "gymnasium.envs.mujoco": {"data", "init_qpos", "goal", "goal_pos", "cylinder_pos"},
    "envs.lqr": {"_state", "_steps"},
}

# By class. Of those that transform by a function only the ones whose function is gymnasium's own:
# anybody else's may remember something.
_WRAPPERS: dict[str, set[str]] = {
    "gymnasium.wrappers.common.TimeLimit": {"_elapsed_steps"},
    "rl_zoo3.gym_patches.PatchedTimeLimit": {"_elapsed_steps"},  # instead, where it was imported
    "gymnasium.wrappers.common.OrderEnforcing": {"_has_reset"},
    "gymnasium.wrappers.common.RecordEpisodeStatistics": {
        *("episode_count", "episode_returns", "episode_lengths"),
        *("time_queue", "return_queue", "length_queue"),
    },
    "gymnasium.wrappers.transform_action.ClipAction": set(),
    "gymnasium.wrappers.transform_action.RescaleAction": set(),
    "gymnasium.wrappers.transform_action.DiscretizeAction": set(),
    "gymnasium.wrappers.transform_observation.FilterObservation": set(),
    "gymnasium.wrappers.transform_observation.FlattenObservation": set(),
    "gymnasium.wrappers.transform_observation.ReshapeObservation": set(),
    "gymnasium.wrappers.transform_observation.RescaleObservation": set(),
    "gymnasium.wrappers.transform_observation.DtypeObservation": set(),
    "gymnasium.wrappers.transform_observation.DiscretizeObservation": set(),
    "gymnasium.wrappers.transform_reward.ClipReward": set(),
    "stable_baselines3.common.monitor.Monitor": {
        *("rewards", "needs_reset", "total_steps", "current_reset_info"),
        *("episode_returns", "episode_lengths", "episode_times"),
    },
}

# Neither state nor settings: what is drawn, where files are, clocks.
BESIDE = {
    *("render_mode", "width", "height", "camera_name", "camera_id", "default_camera_config"),
    *("max_geom", "visual_options", "screen", "screen_dim", "screen_width", "screen_height"),
    *("clock", "isopen", "surf", "window", "window_size", "window_surface", "cell_size"),
    *("metadata", "fullpath", "_disable_render_order_enforcing", "disable_render_order_enforcing"),
    *("t_start", "episode_start_time"),
}


def state_names(kind: type) -> set[str] | None:
    """Name the attributes that are the state of an environment or a wrapper.

    Args:
        kind: its class.

    Returns:
        The names, some of which come with the first reset; None of a class that is not known.
    """
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in _WRAPPERS:
        return _WRAPPERS[name]
    for module, names in _ENVIRONMENTS.items():
        if name.startswith(f"{module}."):
            return names | _GENERATOR
    return None
