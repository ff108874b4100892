"""What compare.py can be told about agents. Nothing heavy is imported for it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from comparison.execution_options import Execution


@dataclass
class Agents:
    """Which agents to compare, where and for how long."""

    envs: tuple[str, ...]
    """Gymnasium ids."""
    agents: tuple[str, ...]
    """This library's by name (trpo, npg, acktr …), the peers' as sb3:ppo or sb3-contrib:trpo, any
    other class in the manner of Stable-Baselines3 as module:Class."""
    seeds: int = 5
    """Runs of each agent on each environment; their seeds are 0, 1, 2 …"""
    total_timesteps: int | Literal["preset"] = 100_000
    """Environment steps of a run, summed over its environments; rounded up to whole rollouts.
    `preset` gives every agent the budget of its own preset, which the report names."""
    preset: str | None = None
    """File of settings for all agents, by path or by its name in scripts/presets. None is each
    agent's own: AGENT.yml, and rl-zoo's for the peers (rl_zoo_CLASS.yml)."""
    output: Path = Path("reports/agents")
    """Directory of the comparison. One that was stopped goes on; more agents, environments or seeds
    are added to what is there."""
    execution: tyro.conf.OmitArgPrefixes[Execution] = field(default_factory=Execution)
    """Where the runs are made, and how many at a time."""


@dataclass
class AgentRun:
    """One run of such a comparison, in this process."""

    agent: tyro.conf.Positional[str]
    """Name of the agent."""
    env: tyro.conf.Positional[str]
    """Gymnasium id."""
    seed: int = 0
    """Of networks, exploration and environments."""
    total_timesteps: int = 100_000
    """Environment steps, summed over the environments; rounded up to whole rollouts."""
    preset: str | None = None
    """File of settings instead of the agent's own."""
    output: Path | None = None
    """Directory for result.json; None prints the final evaluation only."""


@dataclass
class Report:
    """Which comparison to write the page of."""

    directory: tyro.conf.Positional[Path]
    """Directory of the comparison."""


@dataclass
class Digest:
    """Which page to bring up to date."""

    page: tyro.conf.Positional[Path]
    """Markdown; `<!-- comparison: DIRECTORY -->` and `<!-- end -->` mark where the tables of the
    comparison in DIRECTORY, relative to the page, stand."""


@dataclass
class Repeat:
    """Which runs to make a second time."""

    directory: tyro.conf.Positional[Path]
    """Directory of a comparison of agents."""
    runs: int = 4
    """How many, drawn from those that finished; the same ones every time."""
    match: str = "*"
    """Pattern that the names of the runs have to match, as `trpo_Hopper-v5_*`."""
    jobs: int = 1
    """Runs at a time."""


@dataclass
class Runs:
    """Which runs of classify.py to draw."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs, all of one model on one data set."""
    output: Path = Path("comparison.png")
    """PNG file to write."""
