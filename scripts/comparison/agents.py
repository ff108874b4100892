"""A comparison of agents: every agent on every environment from every seed."""

import sys
from itertools import product
from pathlib import Path

import gymnasium as gym
from common import settings
from common.failures import configuration_errors

from comparison import agent_run, files
from comparison.job import Job, compare_command
from comparison.names import Agent, find
from comparison.options import AgentRun, Agents
from comparison.presets import preset_for
from comparison.session import compare
from npg.errors import ConfigurationError


def run(options: Agents) -> int:
    """Compares agents; returns the exit code."""
    with configuration_errors():
        jobs = plan(options)
    return compare(
        jobs,
        options.output,
        "agent",
        options.execution,
        {"steps": options.total_timesteps, "preset": options.preset},
        "return",
    )


def plan(options: Agents) -> list[Job]:
    """Lists the runs; whatever can be seen to be wrong is said before the first one starts.

    Args:
        options: Of the comparison.

    Returns:
        The runs, seed by seed, so that an unfinished comparison has something of everything.

    Raises:
        ConfigurationError: If a name, a number or a preset cannot be used.
    """
    settings.at_least(options, 1, "seeds")
    settings.at_least(options.execution, 1, "jobs")
    if options.total_timesteps != "preset":
        settings.at_least(options, 1, "total_timesteps")
    for option in ("envs", "agents"):
        if not getattr(options, option):
            raise ConfigurationError(f"{option} is empty: name one at least")
    agents = [find(name) for name in dict.fromkeys(options.agents)]
    env_ids = list(dict.fromkeys(options.envs))
    for env_id in env_ids:
        _check_environment(env_id)
    budgets = {
        (agent.name, env_id): _budget(agent, env_id, options)
        for agent, env_id in product(agents, env_ids)
    }
    inputs = [options.preset] if options.preset and Path(options.preset).is_file() else []
    jobs = []
    for seed, env_id, agent in product(range(options.seeds), env_ids, agents):
        steps = budgets[agent.name, env_id]
        one = AgentRun(agent.name, env_id, seed, steps, options.preset)
        name = files.run_name(agent.name, env_id, seed)
        directory = options.output / files.RUNS / name
        words = [*agent_run.words(one), "--output", directory]
        jobs.append(Job(name, compare_command(*words), directory, agent_run.about(one), inputs))
    return jobs


def _budget(agent: Agent, env_id: str, options: Agents) -> int:
    """Returns the steps of a run, and says if there is no preset to run with."""
    preset = preset_for(agent, env_id, options.preset)
    if options.total_timesteps != "preset":
        if preset.file is None:
            print(
                f"note: {agent.name} has no preset for {env_id}: it runs with its defaults",
                file=sys.stderr,
            )
        return options.total_timesteps
    if preset.total_timesteps is None:
        raise ConfigurationError(
            f"total_timesteps=preset: {agent.name} has no preset with a budget for {env_id}; give "
            "a number of steps, or a --preset file with total_timesteps"
        )
    return preset.total_timesteps


def _check_environment(env_id: str) -> None:
    """Makes an environment once, which says what is missing."""
    try:
        gym.make(env_id).close()
    except (gym.error.NameNotFound, gym.error.NamespaceNotFound, ModuleNotFoundError) as error:
        raise ConfigurationError(
            f"there is no environment {env_id!r} ({error}): mend the id in --envs, or write "
            "'package:id', which imports the package that registers it"
        ) from error
