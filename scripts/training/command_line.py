"""From the command line to options: command line, then preset or resumed run, then defaults."""

import argparse
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml
from common import ROOT, settings

from npg.errors import ConfigurationError
from training import run_directory
from training.options import AGENTS, CHANGEABLE, Options, options_class

PRESETS = ROOT / "scripts" / "presets"


def parse(argv: Sequence[str]) -> tuple[str, Options]:
    """Reads the command line.

    Args:
        argv: Its words, without the program.

    Returns:
        The name of the agent, and its options.

    Raises:
        ConfigurationError: If the preset or the run to resume cannot be used.
    """
    chosen = argv[0] if argv and argv[0] in AGENTS else None
    defaults = {name: _defaults(name, argv[1:] if name == chosen else ()) for name in AGENTS}
    commands = tuple(
        Annotated[
            options_class(name),
            tyro.conf.subcommand(
                name, default=default, description=f"Train {AGENTS[name].__name__}."
            ),
        ]
        for name, default in defaults.items()
    )
    options: Options = tyro.cli(
        typing.Union[commands],  # noqa: UP007 - the members are data
        prog="train.py",
        description="Train an agent; `train.py AGENT --help` lists all options.",
        args=argv,
    )
    agent = chosen or argv[0]
    _check(options)
    if options.resume is not None:
        _refuse_changes(options, defaults[agent])
    return agent, options


def _defaults(agent: str, argv: Sequence[str]) -> Options:
    """Returns what holds where the command line is silent, which takes a first look at it."""
    first = argparse.ArgumentParser(prog="train.py", add_help=False, allow_abbrev=False)
    first.add_argument("--env")
    first.add_argument("--preset", nargs="?", const="")
    first.add_argument("--resume", type=Path)
    seen, _ = first.parse_known_args(argv)
    options = options_class(agent)
    if seen.resume is not None:
        config = run_directory.read_config(seen.resume)
        trained = config.get("agent", "classify.py")
        if trained != agent:
            raise ConfigurationError(f"{seen.resume} is a run of {trained}, not of {agent}")
        return _filled(options, config["options"], f"{seen.resume}/{run_directory.CONFIG}")
    values: dict[str, Any] = {}
    file = PRESETS / f"{agent}.yml"
    if seen.preset is not None and seen.env is not None:
        file = Path(seen.preset) if seen.preset else file
        values = _preset(file, seen.env)
    return _filled(options, {"env": tyro.MISSING, **values}, f"{file}, {seen.env}")


def read_presets(file: Path) -> dict[str, dict[str, Any]]:
    """Reads the presets of a file, one per environment."""
    if not file.is_file():
        raise ConfigurationError(f"there is no preset file {file}")
    try:
        presets: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    for env, preset in presets.items() if isinstance(presets, dict) else [(file.stem, presets)]:
        if not isinstance(preset, dict) or not isinstance(preset.get("arguments") or {}, dict):
            raise ConfigurationError(
                f"{file}: {env} must name settings and their values, arguments likewise, as in "
                "'CartPole-v1: {num_envs: 8, arguments: {n_steps: 256}}'"
            )
    return presets


def _preset(file: Path, env: str) -> dict[str, Any]:
    presets = read_presets(file)
    if env not in presets:
        raise ConfigurationError(f"{file} has no preset for {env}, only for {', '.join(presets)}")
    return presets[env]


def _filled(kind: type[Options], values: Mapping[str, Any], source: str) -> Options:
    """Makes options from the defaults and what a file says."""
    arguments_kind = typing.get_args(kind)[0]
    arguments = settings.checked(arguments_kind, values.get("arguments", {}), source)
    run = {name: value for name, value in values.items() if name != "arguments"}
    return kind(**settings.checked(kind, run, source), arguments=arguments_kind(**arguments))


def _check(options: Options) -> None:
    settings.at_least(options, 1, "total_timesteps", "num_envs", "eval_episodes")
    settings.at_least(options, 0, "eval_freq", "save_freq", "env_timeout", "seed")


def _refuse_changes(options: Options, run: Options) -> None:
    """A resumed run is the same run."""
    changed = settings.changed(options, run, but={*CHANGEABLE, "arguments"})
    changed += settings.changed(options.arguments, run.arguments)
    settings.refuse(changed, f"the run in {options.resume}")
