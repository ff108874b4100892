"""One run of an agent, in this process: training under its preset, evaluation, result.json."""

import time

import numpy as np
import torch
from common.failures import configuration_errors
from common.report import command
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from training.session import EVALUATION_ENVS, policy_for

from comparison import files, process
from comparison.names import Agent, find
from comparison.options import AgentRun
from comparison.presets import Preset, preset_for
from comparison.recorder import Recorder
from envs import make

EVALUATION_EPISODES = 20


def words(options: AgentRun) -> list[object]:
    """Returns what compare.py is told to make a run, but for where."""
    told = ["agent", options.agent, options.env, "--seed", options.seed]
    told += ["--total-timesteps", options.total_timesteps]
    return told + (["--preset", options.preset] if options.preset is not None else [])


def about(options: AgentRun) -> dict[str, object]:
    """Returns what result.json says before there is a result."""
    return {
        "kind": "agent",
        "name": options.agent,
        "task": options.env,
        "seed": options.seed,
        "command": command("compare.py", *words(options)),
    }


def run(options: AgentRun) -> int:
    """Trains, evaluates, and writes result.json, or prints the evaluation without a directory."""
    process.end_with_parent()
    torch.set_num_threads(1)
    with configuration_errors():
        agent = find(options.agent)
        preset = preset_for(agent, options.env, options.preset)
        model = build(agent, options.env, options.seed, preset)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
    progress = None if options.output is None else options.output / files.PROGRESS
    recorder = Recorder(options.total_timesteps // Recorder.POINTS, progress)
    started, worked = time.perf_counter(), time.process_time()
    model.learn(options.total_timesteps, callback=recorder)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    final = evaluate(model, options.env, options.seed, num_envs=EVALUATION_ENVS)
    if options.output is None:
        print(f"{model.num_timesteps:,} steps in {seconds:.1f} s", end=", ")
        print(f"mean return of {len(final)} deterministic episodes: {np.mean(final):,.3f}")
        return 0
    result = {
        **about(options),
        "status": "finished",
        "error": "",
        "arguments": preset.recorded(agent),
        "preset": preset.file,
        "steps": model.num_timesteps,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "num_envs": model.n_envs,
        "threads": torch.get_num_threads(),
        "curve": recorder.curve,
        "final": final,
        "diagnostics": recorder.diagnostics(),
    }
    files.write(options.output / files.RESULT, result)
    (options.output / files.PROGRESS).unlink(missing_ok=True)
    return 0


def build(agent: Agent, env_id: str, seed: int, preset: Preset) -> BaseAlgorithm:
    """Makes an agent on its environments, each library by its own means, all on gymnasium.

    Args:
        agent: Which agent.
        env_id: Which environment.
        seed: Of networks, exploration and environments.
        preset: The settings.
    """
    arguments = preset.constructor_arguments()
    gamma = arguments.get("gamma", 0.99)
    env: VecEnv
    if agent.ours:
        env = make(
            env_id,
            num_envs=preset.num_envs,
            seed=seed,
            backend="gymnasium",
            normalize_obs=preset.normalize_obs,
            normalize_reward=preset.normalize_reward,
            gamma=gamma,
        )
    else:
        env = make_vec_env(env_id, n_envs=preset.num_envs, seed=seed)
        if preset.normalize_obs or preset.normalize_reward:
            env = VecNormalize(
                env,
                norm_obs=preset.normalize_obs,
                norm_reward=preset.normalize_reward,
                gamma=gamma,
            )
    policy = _policy(agent, env.observation_space)
    return agent.kind(policy, env, seed=seed, device="cpu", **arguments)


def _policy(agent: Agent, space: spaces.Space) -> str:
    """Returns the policy that observations ask for, by the agent's name for it: MlpLstmPolicy."""
    usual = policy_for(space)
    if usual in agent.kind.policy_aliases:
        return usual
    kind = usual.removesuffix("Policy")
    return next((name for name in agent.kind.policy_aliases if name.startswith(kind)), usual)


def evaluate(
    model: BaseAlgorithm,
    env_id: str,
    seed: int,
    episodes: int = EVALUATION_EPISODES,
    num_envs: int = 1,
) -> list[float]:
    """Plays deterministic episodes on fresh gymnasium environments.

    Observations are normalised by the training's statistics, returns are not.

    Args:
        model: The agent.
        env_id: Which environment.
        seed: Of the run.
        episodes: How many, spread evenly over the environments.
        num_envs: Environments that are stepped together.

    Returns:
        The episodes' returns.
    """
    env: VecEnv = make_vec_env(env_id, n_envs=num_envs, seed=seed + 1000)
    statistics = model.get_vec_normalize_env()
    if statistics is not None:
        env = VecNormalize(env, training=False, norm_obs=statistics.norm_obs, norm_reward=False)
        if statistics.norm_obs:
            env.obs_rms = statistics.obs_rms
    returns, _ = evaluate_policy(
        model, env, n_eval_episodes=episodes, deterministic=True, return_episode_rewards=True
    )
    return [round(float(value), 3) for value in returns]
