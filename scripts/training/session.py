"""Making, or finding again, all that a training run consists of."""

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from common import seeds
from common.event_files import EventFiles
from common.files import remove_unfinished
from common.lock import locked
from common.progress_file import ProgressFile
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from envs import make
from npg.errors import ConfigurationError
from training import run_directory
from training.options import AGENTS, Options

# Evaluations step this many environments together; more would idle while the longest episode runs.
EVALUATION_ENVS = 10


@dataclass
class Run:
    """A run that is ready to be trained."""

    agent: str
    options: Options
    directory: Path
    model: OnPolicyAlgorithm
    eval_env: VecEnv
    resumed_at: int | None
    """Steps of the checkpoint that it goes on from; None for a new run."""
    lock: TextIO
    """Of its directory."""
    held: ExitStack
    """To be closed when the run has ended: the lock of its directory."""


def start(agent: str, options: Options) -> Run:
    """Builds environments and agent, or loads the agent; only then makes the directory.

    Args:
        agent: Name of the agent.
        options: All options.

    Returns:
        The run, with its configuration written and its logs open.
    """
    with ExitStack() as held:
        if options.resume is not None:
            lock = held.enter_context(locked(options.resume, "run", "start a new one"))
            remove_unfinished(options.resume)
        env = _environments(options, options.num_envs, options.seed, options.backend)
        resumed_at = None
        if options.resume is None:
            model = _new_model(agent, options, env)
            directory = run_directory.create(options.track_dir, agent, options.env)
            lock = held.enter_context(locked(directory, "run", "start a new one"))
        elif not (options.resume / run_directory.LAST).exists():
            run_directory.begin_anew(options.resume, run_directory.LAST, *run_directory.TRACES)
            model = _new_model(agent, options, env)
            directory, resumed_at = options.resume, 0
        else:
            model = _resumed_model(agent, options, env)
            directory, resumed_at = options.resume, model.num_timesteps
        run_directory.write_config(directory, agent, options)
        tables = options.verbose > 0
        model.set_logger(run_directory.open_logger(directory, tables, resumed_at))
        eval_env = _evaluation_env(options, model)
        return Run(agent, options, directory, model, eval_env, resumed_at, lock, held.pop_all())


def write_again(run: Run) -> None:
    """Writes configuration and logs into the run's directory, which somebody has emptied."""
    run_directory.write_config(run.directory, run.agent, run.options)
    for output in run.model.logger.output_formats:
        if isinstance(output, (ProgressFile, EventFiles)):
            output.renew()


def _environments(options: Options, number: int, seed: int, backend: str) -> VecEnv:
    return make(
        options.env,
        num_envs=number,
        seed=seed,
        backend=backend,
        normalize_obs=options.normalize_obs,
        normalize_reward=options.normalize_reward,
        gamma=getattr(options.arguments, "gamma", 0.99),
    )


def _new_model(agent: str, options: Options, env: VecEnv) -> OnPolicyAlgorithm:
    policy = policy_for(env.observation_space) if options.policy == "auto" else options.policy
    return AGENTS[agent](
        policy,
        env,
        policy_kwargs=options.policy_kwargs(),
        seed=options.seed,
        device=options.device,
        **vars(options.arguments),
    )


def _resumed_model(agent: str, options: Options, env: VecEnv) -> OnPolicyAlgorithm:
    assert options.resume is not None
    last = options.resume / run_directory.LAST
    model = AGENTS[agent].load(last, env, device=options.device)
    done = model.num_timesteps
    if done >= options.total_timesteps:
        raise ConfigurationError(
            f"the run in {options.resume} has done {done:,} of {options.total_timesteps:,} steps: "
            "give a larger --total-timesteps"
        )
    reason = model.restore_environments()
    if reason:
        print(f"note: episodes begin anew, since {reason}", file=sys.stderr)
        # Loading seeds the environments as at the start of the run: they would repeat its episodes.
        model.get_env().seed(seeds.derived(options.seed, seeds.TRAINING, done))
    return model


def _evaluation_env(options: Options, model: OnPolicyAlgorithm) -> VecEnv:
    """Makes environments that are wrapped as the model's own, and leave its statistics alone."""
    number = min(options.eval_episodes, EVALUATION_ENVS)
    env = model._wrap_env(_environments(options, number, options.seed, "gymnasium"))
    normaliser = unwrap_vec_normalize(env)
    if normaliser is not None:
        normaliser.training = False
        normaliser.norm_reward = False
    return env


def policy_for(space: spaces.Space) -> str:
    """Returns the kind of policy that observations ask for."""
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"
