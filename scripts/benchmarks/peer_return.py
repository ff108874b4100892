"""One training run of sb3-contrib's TRPO under its rl-zoo preset, as a JSON file.

`scripts/benchmark.py returns` starts this in a process of its own, one thread each, for every
environment and seed that has no file yet.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

PRESETS = Path(__file__).parent.parent / "presets"


class TrainingCurve(BaseCallback):
    """Records [steps, seconds, mean return of the last 100 training episodes] every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[list[float]] = []
        self.started = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.model.ep_info_buffer:
            mean = float(np.mean([episode["r"] for episode in self.model.ep_info_buffer]))
            elapsed = time.perf_counter() - self.started
            self.points.append([self.num_timesteps, round(elapsed, 2), round(mean, 2)])


def write_atomically(path: Path, result: dict[str, object]) -> None:
    """Writes JSON to a temporary name, then renames it, so that a killed run leaves nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result))
    os.replace(temporary, path)


def evaluate(model, env_id: str, seed: int, episodes: int = 20) -> list[float]:
    """Returns of deterministic episodes on fresh gymnasium environments, unnormalised rewards."""
    env: VecEnv = make_vec_env(env_id, n_envs=1, seed=seed + 1000)
    statistics = model.get_vec_normalize_env()
    if statistics is not None:
        env = VecNormalize(env, training=False, norm_reward=False)
        env.obs_rms = statistics.obs_rms
    returns, _ = evaluate_policy(
        model, env, n_eval_episodes=episodes, deterministic=True, return_episode_rewards=True
    )
    return [round(value, 3) for value in returns]


def main(env_id: str, seed: int, output: Path) -> None:
    """Trains the peer, evaluates it, writes the file."""
    from sb3_contrib import TRPO

    torch.set_num_threads(1)
    preset = yaml.safe_load((PRESETS / "rl_zoo_trpo.yml").read_text())[env_id]
    arguments = preset["arguments"]
    env: VecEnv = make_vec_env(env_id, n_envs=preset["num_envs"], seed=seed)
    if preset.get("normalize_obs"):
        env = VecNormalize(env, gamma=arguments.get("gamma", 0.99))
    model = TRPO("MlpPolicy", env, seed=seed, device="cpu", **arguments)
    curve = TrainingCurve()
    started = time.perf_counter()
    model.learn(preset["total_timesteps"], callback=curve)
    seconds = time.perf_counter() - started
    result = dict(library="sb3-contrib", env=env_id, seed=seed, steps=model.num_timesteps,
                  seconds=seconds, evaluation=evaluate(model, env_id, seed), curve=curve.points)
    write_atomically(output, result)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
