"""Settings of a run from a preset file, for any class in the manner of Stable-Baselines3."""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import settings
from stable_baselines3.common.utils import LinearSchedule
from training.command_line import PRESETS, read_presets
from training.options import SET_BY_RUN, Options

from comparison.names import Agent
from npg.errors import ConfigurationError

FALLING = "lin_"  # rl-zoo's word for a number that falls to zero


@dataclass(frozen=True)
class Preset:
    """Environments and constructor arguments of an agent.

    Attributes:
        file: Name of the file they come from; None if they are the class's defaults.
        num_envs: Environments that are stepped together.
        normalize_obs: Whether observations are normalised.
        normalize_reward: Whether rewards are.
        arguments: Of the constructor, as they stand in the file.
        policy_kwargs: Of the policy's constructor.
        total_timesteps: Budget; None if the file has none.
    """

    file: str | None = None
    num_envs: int = 1
    normalize_obs: bool = False
    normalize_reward: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    policy_kwargs: dict[str, Any] = field(default_factory=dict)
    total_timesteps: int | None = None

    def constructor_arguments(self) -> dict[str, Any]:
        """Returns what the constructor takes, schedules made of their names."""
        arguments = {name: _value(value) for name, value in self.arguments.items()}
        # A copy, since Stable-Baselines3's A2C adds to it: the file's is what is recorded.
        policy_kwargs = {"policy_kwargs": dict(self.policy_kwargs)} if self.policy_kwargs else {}
        return arguments | policy_kwargs

    def recorded(self, agent: Agent) -> dict[str, Any]:
        """Returns all settings of a run as JSON knows them, the constructor's defaults included."""
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(agent.kind).parameters.items()
            if name not in SET_BY_RUN and parameter.default is not parameter.empty
        }
        return {
            "num_envs": self.num_envs,
            "normalize_obs": self.normalize_obs,
            "normalize_reward": self.normalize_reward,
            "policy_kwargs": _plain(self.policy_kwargs),
            **{name: _plain(value) for name, value in {**defaults, **self.arguments}.items()},
        }


def preset_for(agent: Agent, env_id: str, file: str | None = None) -> Preset:
    """Finds an agent's settings for an environment.

    Args:
        agent: Which agent.
        env_id: Which environment.
        file: Of presets, by its path or by its name in scripts/presets, with or without its
            ending; None is the agent's own, where the class's defaults take the place of an entry
            that is missing.

    Returns:
        The settings.

    Raises:
        ConfigurationError: If the file has no entry for the environment, or one that the class
            cannot take, or one whose budget is no number of steps.
    """
    path = agent.preset_file if file is None else _found(file)
    if path is None:
        return Preset()
    presets = read_presets(path)
    if env_id not in presets:
        if file is None:
            return Preset()
        raise ConfigurationError(
            f"{path} has no preset for {env_id}, only for {', '.join(presets)}"
        )
    source = f"{path.name}, {env_id}"
    values = dict(presets[env_id] or {})
    arguments = dict(values.pop("arguments", None) or {})
    policy_kwargs = arguments.pop("policy_kwargs", {})
    if values.get("total_timesteps", 0) is None:
        del values["total_timesteps"]
    checked = settings.checked(Options, values, source)
    if checked.get("total_timesteps", 1) < 1:
        raise ConfigurationError(
            f"{source}: total_timesteps must be at least 1, got {checked['total_timesteps']}: "
            "write a whole number, such as 1000, or leave total_timesteps out"
        )
    run = Options(env=env_id, arguments=None, **checked)
    taken = inspect.signature(agent.kind).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    unknown = [] if open_ended else [name for name in arguments if name not in taken]
    if unknown:
        raise ConfigurationError(f"{source}: {agent.name} does not take {', '.join(unknown)}")
    return Preset(
        path.name,
        run.num_envs,
        run.normalize_obs,
        run.normalize_reward,
        arguments,
        {**run.policy_kwargs(), **policy_kwargs},
        checked.get("total_timesteps"),
    )


def _found(file: str) -> Path:
    for path in (Path(file), PRESETS / file, PRESETS / f"{file}.yml"):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yml")))
    raise ConfigurationError(f"there is no preset file {file}: name a file, or one of {names}")


def _value(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.startswith(FALLING):
        return LinearSchedule(float(value.removeprefix(FALLING)), end=0.0, end_fraction=1.0)
    try:
        return float(value)  # YAML 1.1 reads 1e-3 as a string
    except ValueError:
        return value


def _plain(value: Any) -> Any:
    """Returns a value that JSON knows, by its name if it must be."""
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__name__", None) or repr(value)
