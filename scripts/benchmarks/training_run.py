"""One training run under a preset, by either library, as a JSON file.

`scripts/benchmark.py returns` starts this in a process of its own, one thread each, for every
library, environment and seed that has no file yet.
"""

import argparse
import importlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

PRESETS = Path(__file__).parent.parent / "presets"
# What is trained: (module, class, preset file).
LIBRARIES = {
    "npg": ("agents", "TRPO", "trpo.yml"),
    "sb3-contrib": ("sb3_contrib", "TRPO", "rl_zoo_trpo.yml"),
    # The peer with what our preset changes in rl-zoo's.
    "sb3-contrib-retuned": ("sb3_contrib", "TRPO", "trpo.yml"),
    "npg-a2c": ("agents", "A2C", "rl_zoo_a2c.yml"),
    "npg-acktr": ("agents", "ACKTR", "acktr.yml"),
    "sb3-a2c": ("stable_baselines3", "A2C", "rl_zoo_a2c.yml"),
}
# What the peer has no argument for.
OURS_ALONE = ("critic", "kl_annealing", "kl_reduction", "step_norm")


# Environment steps between points of a curve: A2C has a rollout every five steps.
CURVE_STEPS = 500


class TrainingCurve(BaseCallback):
    """Records [steps, seconds, mean return of the last 100 training episodes] after rollouts."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[list[float]] = []
        self.started = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        last = self.points[-1][0] if self.points else 0
        if self.model.ep_info_buffer and self.num_timesteps >= last + CURVE_STEPS:
            mean = float(np.mean([episode["r"] for episode in self.model.ep_info_buffer]))
            elapsed = time.perf_counter() - self.started
            self.points.append([self.num_timesteps, round(elapsed, 2), round(mean, 2)])


def preset(library: str, env_id: str) -> dict[str, Any]:
    """Reads a library's settings for an environment."""
    file = PRESETS / LIBRARIES[library][2]
    settings: dict[str, Any] = yaml.safe_load(file.read_text())[env_id]
    rate = settings["arguments"].get("learning_rate")
    if isinstance(rate, str):
        settings["arguments"]["learning_rate"] = LinearSchedule(
            float(rate.removeprefix("lin_")), end=0.0, end_fraction=1.0
        )
    return settings


def build(library: str, env_id: str, seed: int, overrides: dict[str, Any]) -> BaseAlgorithm:
    """Makes the agent on its environments, each library by its own means."""
    settings = preset(library, env_id)
    arguments = {**settings["arguments"], **overrides}
    normalize = settings.get("normalize_obs", False)
    module, name, _ = LIBRARIES[library]
    agent: type[BaseAlgorithm] = getattr(importlib.import_module(module), name)
    if module == "agents":
        from envs import make

        env: VecEnv = make(
            env_id,
            num_envs=settings["num_envs"],
            seed=seed,
            backend="gymnasium",
            normalize_obs=normalize,
            normalize_reward=settings.get("normalize_reward", False),
            gamma=arguments.get("gamma", 0.99),
        )
    else:
        env = make_vec_env(env_id, n_envs=settings["num_envs"], seed=seed)
        if normalize:
            env = VecNormalize(env, gamma=arguments.get("gamma", 0.99))
        if library == "sb3-contrib-retuned":
            dimensions = env.action_space.shape[0]
            arguments = preset("sb3-contrib", env_id)["arguments"] | {
                name: value for name, value in arguments.items() if name not in OURS_ALONE
            }
            arguments["target_kl"] /= dimensions
            arguments["cg_damping"] /= dimensions
    return agent("MlpPolicy", env, seed=seed, device="cpu", **arguments)


def evaluate(model: BaseAlgorithm, env_id: str, seed: int, episodes: int = 20) -> list[float]:
    """Returns of deterministic episodes on fresh gymnasium environments, unnormalised rewards."""
    env: VecEnv = make_vec_env(env_id, n_envs=1, seed=seed + 1000)
    statistics = model.get_vec_normalize_env()
    if statistics is not None:
        env = VecNormalize(env, training=False, norm_reward=False)
        env.obs_rms = statistics.obs_rms
    returns, _ = evaluate_policy(
        model, env, n_eval_episodes=episodes, deterministic=True, return_episode_rewards=True
    )
    return [round(float(value), 3) for value in returns]


def main() -> None:
    """Trains, evaluates, and writes the file under a temporary name first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=sorted(LIBRARIES))
    parser.add_argument("env")
    parser.add_argument("seed", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("output", type=Path)
    parser.add_argument("--overrides", type=json.loads, default={})
    options = parser.parse_args()

    torch.set_num_threads(1)
    model = build(options.library, options.env, options.seed, options.overrides)
    curve = TrainingCurve()
    started = time.perf_counter()
    model.learn(options.steps, callback=curve)
    seconds = time.perf_counter() - started
    result = {
        "library": options.library,
        "env": options.env,
        "seed": options.seed,
        "steps": model.num_timesteps,
        "seconds": seconds,
        "evaluation": evaluate(model, options.env, options.seed),
        "curve": curve.points,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.output.with_suffix(".tmp")
    temporary.write_text(json.dumps(result))
    os.replace(temporary, options.output)


if __name__ == "__main__":
    main()
