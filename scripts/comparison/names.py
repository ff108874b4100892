"""From the name of an agent on the command line to its class."""

import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from stable_baselines3.common.base_class import BaseAlgorithm
from training.command_line import PRESETS
from training.options import AGENTS

from npg.errors import ConfigurationError

# Prefixes for libraries: the module, and what pip calls it.
LIBRARIES = {
    "sb3": ("stable_baselines3", "stable-baselines3"),
    "sb3-contrib": ("sb3_contrib", "sb3-contrib"),
}
WAYS = f"{', '.join(AGENTS)}; sb3:ppo, sb3-contrib:trpo and their like; module:Class"


@dataclass(frozen=True)
class Agent:
    """An agent that can be trained.

    Attributes:
        name: On the command line and in the report.
        kind: Its class.
        ours: Whether it is this library's, which makes environments by its own means.
        preset_file: Of its settings; None if there is none.
    """

    name: str
    kind: type[BaseAlgorithm]
    ours: bool
    preset_file: Path | None


def find(name: str) -> Agent:
    """Finds an agent by its name.

    Args:
        name: "trpo" for this library's, "sb3:ppo" and "sb3-contrib:trpo" for the peers' (names of
            classes in small letters), "module:Class" for any class in the manner of
            Stable-Baselines3.

    Returns:
        The agent.

    Raises:
        ConfigurationError: If there is none of that name, or its package is not installed.
    """
    if os.getcwd() not in sys.path:  # for a user's own agents and environments
        sys.path.append(os.getcwd())
    library, _, short = name.partition(":")
    if library in LIBRARIES:
        name, short = name.lower(), short.lower()  # one agent, one name, one directory of runs
    if name in AGENTS:
        return Agent(name, AGENTS[name], True, _existing(f"{name}.yml"))
    if not short:
        raise ConfigurationError(f"there is no agent {name!r}: the names are {WAYS}")
    if library not in LIBRARIES:
        return Agent(name, _from_module(name, library, short), False, None)
    module_name, package = LIBRARIES[library]
    module = _imported(name, module_name, f"pip install {package}")
    kinds = _agents_in(module)
    if short not in kinds:
        raise ConfigurationError(
            f"there is no agent {name!r}: {library} has "
            f"{', '.join(f'{library}:{known}' for known in kinds)}"
        )
    return Agent(name, kinds[short], False, _existing(f"rl_zoo_{short}.yml"))


def _agents_in(module: ModuleType) -> Mapping[str, type[BaseAlgorithm]]:
    return {
        name.lower(): value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, BaseAlgorithm)
    }


def _from_module(name: str, module_name: str, class_name: str) -> type[BaseAlgorithm]:
    remedy = f"install its package, or start where {module_name.partition('.')[0]} lies"
    module = _imported(name, module_name, remedy)
    kind = getattr(module, class_name, None)
    if not (inspect.isclass(kind) and issubclass(kind, BaseAlgorithm)):
        raise ConfigurationError(
            f"{name!r} is not an agent: {module_name} has no class {class_name} derived from "
            "Stable-Baselines3's BaseAlgorithm"
        )
    return kind


def _imported(name: str, module: str, remedy: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"agent {name!r} cannot be had ({error}): {remedy}") from error
    except ImportError as error:
        raise ConfigurationError(f"agent {name!r} cannot be imported: {error}") from error


def _existing(file: str) -> Path | None:
    return PRESETS / file if (PRESETS / file).is_file() else None
