"""Whole training, in environment steps per second, against sb3-contrib's TRPO."""

from statistics import median

import sb3_contrib
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env

from agents import TRPO
from benchmarks.report import Row, interleaved, median_ratio, show
from envs import make

# (environment, environments, steps per environment and update, backend, critic, target)
CASES = [
    ("CartPole-v1", 1, 2048, "gymnasium", "adam", ">= 8"),
    ("CartPole-v1", 1, 2048, "gymnasium", "gauss-newton", ">= 10"),
    ("CartPole-v1", 8, 256, "gymnasium", "gauss-newton", ">= 5"),
    ("CartPole-v1", 8, 2048, "gymnasium", "gauss-newton", ">= 5"),
    ("HalfCheetah-v5", 1, 2048, "gymnasium", "gauss-newton", ">= 5"),
    ("HalfCheetah-v5", 8, 256, "gymnasium", "gauss-newton", ">= 2.5"),
    ("HalfCheetah-v5", 8, 2048, "gymnasium", "gauss-newton", ">= 2.5"),
    ("HalfCheetah-v5", 8, 256, "envpool", "gauss-newton", ">= 3.5"),
    ("HalfCheetah-v5", 8, 2048, "envpool", "gauss-newton", ">= 3.5"),
    # The same critic on both sides: what the rest of the update is worth.
    ("CartPole-v1", 8, 256, "gymnasium", "adam", ""),
    ("HalfCheetah-v5", 1, 2048, "gymnasium", "adam", ""),
    ("HalfCheetah-v5", 8, 256, "gymnasium", "adam", ""),
    ("HalfCheetah-v5", 8, 256, "envpool", "adam", ""),
]


def run(rounds: int, command: str) -> None:
    """Trains both libraries one update at a time, in turn, with equal settings."""
    rows = []
    for env_id, num_envs, n_steps, backend, critic, target in CASES:
        steps = num_envs * n_steps
        theirs: BaseAlgorithm = sb3_contrib.TRPO(
            "MlpPolicy", make_vec_env(env_id, num_envs, seed=0), n_steps=n_steps, seed=0
        )
        ours = TRPO(
            "MlpPolicy",
            make(env_id, num_envs=num_envs, seed=0, backend=backend),
            n_steps=n_steps,
            seed=0,
            critic=critic,
            kl_reduction="per-dimension",
        )

        def update(model: BaseAlgorithm, steps: int = steps) -> None:
            model.learn(steps, reset_num_timesteps=False)

        their_times, our_times = interleaved(
            [lambda m=theirs: update(m), lambda m=ours: update(m)], rounds
        )
        rows.append(
            Row(
                f"{env_id}, {num_envs} × {n_steps}, {backend}, critic {critic}",
                f"{steps / median(our_times):,.0f} steps/s",
                f"sb3-contrib {steps / median(their_times):,.0f} steps/s",
                median_ratio(their_times, our_times),
                target,
            )
        )
        ours.get_env().close()
        theirs.get_env().close()
    show("Training throughput", rows, command)
