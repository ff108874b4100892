"""Making, or finding again, all that a training run consists of."""

import io
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
from common.ranks import ALONE, Ranks
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
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
    eval_env: VecEnv | None
    """None on ranks other than the first, which evaluates."""
    resumed_at: int | None
    """Steps of the checkpoint that it goes on from; None for a new run."""
    lock: TextIO | None
    """Of its directory; None on ranks other than the first."""
    held: ExitStack
    """To be closed when the run has ended: the lock of its directory."""
    ranks: Ranks
    """What this process is among those that train together."""


def start(agent: str, options: Options, ranks: Ranks = ALONE) -> Run:
    """Builds environments and agent, or loads the agent; only then makes the directory.

    Args:
        agent: Name of the agent.
        options: All options.
        ranks: What this process is among those that train together. The first of them has the
            directory to itself.

    Returns:
        The run, with its configuration written and its logs open.
    """
    lock: TextIO | None = None
    with ExitStack() as held:
        if options.resume is not None and ranks.is_main:
            lock = held.enter_context(locked(options.resume, "run", "start a new one"))
            remove_unfinished(options.resume)
        first = options.seed + ranks.rank * options.num_envs  # of one process with all of them
        env = _environments(options, options.num_envs, first, options.backend)
        resumed_at = None
        if options.resume is None:
            model = _new_model(agent, options, env)
            directory = options.track_dir
            if ranks.is_main:
                directory = run_directory.create(options.track_dir, agent, options.env)
                lock = held.enter_context(locked(directory, "run", "start a new one"))
            directory = ranks.shared(directory)
        else:
            model = _continued(agent, options, env, ranks)
            directory, resumed_at = options.resume, model.num_timesteps
        if not ranks.is_main:
            model.set_logger(Logger(folder=None, output_formats=[]))
            return Run(agent, options, directory, model, None, resumed_at, None, held, ranks)
        run_directory.write_config(directory, agent, options)
        tables = options.verbose > 0
        model.set_logger(run_directory.open_logger(directory, tables, resumed_at))
        eval_env = _evaluation_env(options, model)
        held = held.pop_all()
        return Run(agent, options, directory, model, eval_env, resumed_at, lock, held, ranks)


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


def _continued(agent: str, options: Options, env: VecEnv, ranks: Ranks) -> OnPolicyAlgorithm:
    """The agent of the run to resume: as its checkpoint has it, or new if there was none yet.

    The first rank reads the file: no other may find one that is older or younger.
    """
    assert options.resume is not None
    last, content = options.resume / run_directory.LAST, b""
    if ranks.is_main and last.exists():
        content = last.read_bytes()
    elif ranks.is_main:
        run_directory.begin_anew(options.resume, run_directory.LAST, *run_directory.TRACES)
    content = ranks.shared(content)
    if not content:
        return _new_model(agent, options, env)
    saved = last if ranks.is_main else io.BytesIO(content)
    model = AGENTS[agent].load(saved, env, device=options.device)
    done = model.num_timesteps
    if done >= options.total_timesteps:
        raise ConfigurationError(
            f"the run in {options.resume} has done {done:,} of {options.total_timesteps:,} steps: "
            "give a larger --total-timesteps"
        )
    reason = model.restore_environments()
    if reason:
        if ranks.is_main:
            print(f"note: episodes begin anew, since {reason}", file=sys.stderr)
        # Loading seeds the environments as at the start of the run: they would repeat its episodes.
        first = seeds.derived(options.seed, seeds.TRAINING, done)
        model.get_env().seed(first + ranks.rank * options.num_envs)
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
