"""One training run under a preset, by either library, as a JSON file.

`scripts/benchmark.py returns` starts this in a process of its own, one thread each, for every
library, environment and seed that has no file yet.
"""

import argparse
import dataclasses
import inspect
import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import sb3_contrib
import torch
from common.files import replacing
from comparison import agent_run
from comparison.names import find
from comparison.presets import Preset, preset_for
from comparison.recorder import Recorder
from stable_baselines3.common.base_class import BaseAlgorithm

# What is trained: the agent's name in compare.py, and the preset file.
LIBRARIES = {
    "npg": ("trpo", "trpo.yml"),
    # Ours with the trust region of rl-zoo's preset in place of our preset's.
    "npg-equal-region": ("trpo", "trpo.yml"),
    "sb3-contrib": ("sb3-contrib:trpo", "rl_zoo_trpo.yml"),
    # The peer with what our preset changes in rl-zoo's.
    "sb3-contrib-retuned": ("sb3-contrib:trpo", "rl_zoo_trpo.yml"),
    "npg-a2c": ("a2c", "rl_zoo_a2c.yml"),
    "npg-acktr": ("acktr", "acktr.yml"),
    "sb3-a2c": ("sb3:a2c", "rl_zoo_a2c.yml"),
}
# What the peer has no argument for.
OURS_ALONE = ("critic", "kl_annealing", "kl_reduction", "step_norm")

PEER_TARGET_KL = inspect.signature(sb3_contrib.TRPO).parameters["target_kl"].default

# Environment steps between points of a curve: A2C has a rollout every five steps.
CURVE_STEPS = 500


def preset(library: str, env_id: str, overrides: dict[str, Any]) -> Preset:
    """Reads a library's settings for an environment."""
    name, file = LIBRARIES[library]
    settings = preset_for(find(name), env_id, file)
    if library == "npg-equal-region":
        theirs = preset("sb3-contrib", env_id, {}).arguments
        target = theirs.get("target_kl", PEER_TARGET_KL) * _action_dimensions(env_id)
        overrides = {"target_kl": target, **overrides}
    if library != "sb3-contrib-retuned":
        return dataclasses.replace(settings, arguments={**settings.arguments, **overrides})
    ours = preset("npg", env_id, overrides)
    changed = {name: value for name, value in ours.arguments.items() if name not in OURS_ALONE}
    dimensions = _action_dimensions(env_id)
    for name in ("target_kl", "cg_damping"):
        changed[name] /= dimensions
    return dataclasses.replace(ours, arguments={**settings.arguments, **changed})


def _action_dimensions(env_id: str) -> int:
    """Over which the peer's KL is a mean, and ours a sum."""
    with gym.make(env_id) as env:
        return int(env.action_space.shape[0])


def build(library: str, env_id: str, seed: int, overrides: dict[str, Any]) -> BaseAlgorithm:
    """Makes the agent on its environments, each library by its own means."""
    agent = find(LIBRARIES[library][0])
    return agent_run.build(agent, env_id, seed, preset(library, env_id, overrides))


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
    recorder = Recorder(CURVE_STEPS)
    started = time.perf_counter()
    model.learn(options.steps, callback=recorder)
    seconds = time.perf_counter() - started
    result = {
        "library": options.library,
        "env": options.env,
        "seed": options.seed,
        "steps": model.num_timesteps,
        "seconds": seconds,
        "evaluation": agent_run.evaluate(model, options.env, options.seed),
        "curve": recorder.curve,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.output) as temporary:
        temporary.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
