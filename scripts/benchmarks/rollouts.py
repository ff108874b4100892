"""Collecting a rollout against stepping the same environments with random actions."""

from statistics import median

import numpy as np

from agents import TRPO
from benchmarks.report import Row, interleaved, median_ratio, show
from envs import make

CASES = [
    (env_id, num_envs, backend)
    for env_id in ("CartPole-v1", "HalfCheetah-v5")
    for num_envs in (1, 8, 64)
    for backend in ("gymnasium", "envpool")
    if backend == "gymnasium" or num_envs > 1
]
STEPS = 8192


def run(rounds: int, command: str) -> None:
    """Alternates rollouts with stepping; the random actions are drawn before the clock starts."""
    rows = []
    for env_id, num_envs, backend in CASES:
        n_steps = STEPS // num_envs
        env = make(env_id, num_envs=num_envs, seed=0, backend=backend)
        model = TRPO("MlpPolicy", env, n_steps=n_steps, seed=0, kl_reduction="joint")
        _, callback = model._setup_learn(STEPS)
        random_env = make(env_id, num_envs=num_envs, seed=0, backend=backend)
        random_env.reset()
        space = random_env.action_space
        actions = [np.stack([space.sample() for _ in range(num_envs)]) for _ in range(n_steps)]

        def rollout(model=model, env=env, callback=callback, n_steps=n_steps) -> None:
            model.collect_rollouts(env, callback, model.rollout_buffer, n_steps)

        def step(env=random_env, actions=actions) -> None:
            for action in actions:
                env.step(action)

        step_times, rollout_times = interleaved([step, rollout], rounds)
        rows.append(
            Row(
                f"{env_id}, {num_envs} environments, {backend}",
                f"{STEPS / median(rollout_times):,.0f} steps/s",
                f"environments alone {STEPS / median(step_times):,.0f} steps/s",
                median_ratio(step_times, rollout_times),
                ">= 0.6",
            )
        )
        env.close()
        random_env.close()
    show("Rollout", rows, command)
