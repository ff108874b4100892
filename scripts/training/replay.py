"""Finding a trained agent, and playing it on environments as it knows them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from common import seeds
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from envs import make, normalizer_from_state
from npg.errors import ConfigurationError
from training import run_directory
from training.options import AGENTS
from training.session import EVALUATION_ENVS
from training.video import Recording, prepare_rendering


@dataclass
class Agent:
    """Which agent to play, where."""

    path: tyro.conf.Positional[Path]
    """Directory of a run, or a checkpoint."""
    episodes: int = 20
    """Episodes to play."""
    checkpoint: Literal["best", "last"] | None = None
    """Which checkpoint of the directory; None is the best one, or the last where there is none."""
    seed: int | None = None
    """Of environments and actions. None follows from the run's seed: episodes that neither its
    training nor its evaluations played."""
    env: str | None = None
    """Gymnasium id, for a checkpoint outside of its run's directory, or to try another one."""
    agent: Annotated[str | None, tyro.conf.arg(metavar=f"{{{','.join(AGENTS)}}}")] = None
    """Kind of agent, for a checkpoint outside of its run's directory; None is trpo there."""
    device: str = "cpu"
    """cpu, cuda or auto."""


@dataclass
class Options(Agent):
    """Which agent to play, and how."""

    deterministic: bool = True
    """Take the most probable action instead of a random one."""
    record: Path | None = None
    """Write the first episode to this mp4 file."""


def load(options: Agent, rendered: bool = False) -> tuple[OnPolicyAlgorithm, VecEnv, str]:
    """Loads the agent and makes environments as it knows them, with undivided rewards.

    Args:
        options: Which agent and environment.
        rendered: Whether the environments draw pictures.

    Returns:
        Agent, environments, and a line that describes them.

    Raises:
        ConfigurationError: If there is no checkpoint, or it does not say its environment.
    """
    if options.episodes < 1:
        raise ConfigurationError(f"episodes must be at least 1, got {options.episodes}")
    file, config = _find(options)
    run = config.get("options", {})
    env_id = options.env or run.get("env")
    if env_id is None:
        raise ConfigurationError(f"{file} has no {run_directory.CONFIG} beside it: give --env")
    agent = options.agent or config.get("agent", "trpo")
    if agent not in AGENTS:
        raise ConfigurationError(f"there is no agent {agent!r}, only {', '.join(AGENTS)}")
    model = AGENTS[agent].load(file, device=options.device)
    seed = options.seed
    if seed is None:
        seed = seeds.derived(run.get("seed", 0), seeds.REPLAY)
    rendering = {}
    if rendered:
        prepare_rendering()
        rendering["render_mode"] = "rgb_array"
    number = min(options.episodes, EVALUATION_ENVS)
    env = make(env_id, num_envs=number, seed=seed, backend="gymnasium", **rendering)
    state = model.training_optim_state.normaliser
    if state is not None:
        env = normalizer_from_state(env, state)
        env.training = False
        env.norm_reward = False
    set_random_seed(seed)
    return model, env, f"{agent} on {env_id}, {file} at {model.num_timesteps:,} steps"


def play(
    model: OnPolicyAlgorithm, env: VecEnv, options: Options, recording: Recording | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Plays the episodes; returns their returns and lengths."""
    returns, lengths = evaluate_policy(
        model,
        env,
        n_eval_episodes=options.episodes,
        deterministic=options.deterministic,
        return_episode_rewards=True,
        callback=recording,
    )
    return np.array(returns), np.array(lengths)


def _find(options: Options) -> tuple[Path, dict]:
    """Returns the checkpoint and the configuration of its run, empty if it is not in one."""
    path = options.path
    if not path.is_dir():
        beside = (path.parent / run_directory.CONFIG).is_file()
        return path, run_directory.read_config(path.parent) if beside else {}
    config = run_directory.read_config(path)
    names = {"best": run_directory.BEST, "last": run_directory.LAST}
    wanted = list(names) if options.checkpoint is None else [options.checkpoint]
    for name in wanted:
        if (path / names[name]).is_file():
            return path / names[name], config
    raise ConfigurationError(f"{path} has no {' or '.join(wanted)} checkpoint yet")
