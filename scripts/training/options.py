"""What a training run can be told: options of the run, and each agent's own arguments."""

import collections.abc
import dataclasses
import functools
import inspect
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tyro.constructors import PrimitiveConstructorSpec

from agents import A2C, ACKTR, ES, NPG, PPO, REINFORCE, TRPO

# A new agent is one line here: its arguments are read off its constructor.
AGENTS: dict[str, type[OnPolicyAlgorithm]] = {
    "trpo": TRPO,
    "npg": NPG,
    "a2c": A2C,
    "acktr": ACKTR,
    "ppo": PPO,
    "reinforce": REINFORCE,
    "es": ES,
}

# Constructor arguments that the options of the run decide.
SET_BY_RUN = {
    "policy",
    "env",
    "policy_kwargs",
    "tensorboard_log",
    "verbose",
    "seed",
    "device",
    "rollout_buffer_class",
    "rollout_buffer_kwargs",
    "_init_setup_model",
}

ACTIVATIONS = {"tanh": "Tanh", "relu": "ReLU", "elu": "ELU", "gelu": "GELU", "silu": "SiLU"}

# `--preset` alone is the file of the agent, `--preset FILE` another one.
PresetFile = Annotated[
    str | None,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[FILE]",
        instance_from_str=lambda values: " ".join(values),
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: [value] if value else [],
    ),
]

Arguments = TypeVar("Arguments")


@dataclass
class Options(Generic[Arguments]):
    """A training run."""

    env: str
    """Gymnasium id."""
    preset: PresetFile = None
    """Start from the environment's entry in scripts/presets/AGENT.yml, or in FILE. What the command
    line says goes before the preset, which goes before the agent's defaults."""
    total_timesteps: int = 100_000
    """Environment steps, summed over the environments; rounded up to whole rollouts or
    populations."""
    num_envs: int = 1
    """Environments that are stepped together; of every rank where torchrun starts several."""
    seed: int = 0
    """Fixes networks, environments, exploration and evaluations."""
    backend: Literal["auto", "gymnasium", "envpool"] = "auto"
    """Simulator; auto takes EnvPool where it pays and is known to be the same.
    Evaluations run on gymnasium."""
    normalize_obs: bool = False
    """Normalise observations by their running mean and deviation."""
    normalize_reward: bool = False
    """Divide rewards by the running deviation of the return; reported returns are not divided."""
    policy: Literal["auto", "MlpPolicy", "CnnPolicy", "MultiInputPolicy"] = "auto"
    """Kind of policy; auto goes by the observation space."""
    hidden_layers: tuple[int, ...] | None = None
    """Widths of the hidden layers, of actor and critic alike, such as `64 64`. None is the
    policy's own choice, 64 64 for MlpPolicy."""
    activation: Literal["tanh", "relu", "elu", "gelu", "silu"] | None = None
    """Between the hidden layers. None is the policy's own choice, tanh."""
    log_std_init: float | None = None
    """Logarithm of the first standard deviation of continuous actions. None is 0."""
    device: str = "auto"
    """cpu, cuda or auto."""
    eval_freq: int = 25_000
    """Environment steps between evaluations; 0 evaluates once, at the end."""
    eval_episodes: int = 5
    """Episodes of an evaluation, with deterministic actions."""
    stop_at: float | None = None
    """Stop when an evaluation's mean return reaches this."""
    save_freq: int = 50_000
    """Environment steps between checkpoints (last_model.zip), the first of which comes before the
    first step; 0 saves at the end only."""
    env_timeout: float = 600.0
    """Seconds that one step or reset of the environments may take. Then the run ends, saved, and
    says where it hangs; 0 waits for ever."""
    track_dir: Path = Path("runs")
    """Where run directories are made."""
    resume: Path | None = None
    """Continue the run in this directory from its last checkpoint. Its options hold; only when to
    stop, evaluate, save and what to print may be changed."""
    progress_bar: bool = True
    """Draw a progress bar; not together with the tables of `--verbose 1`."""
    verbose: int = 0
    """1 prints a table at every update, 2 also the traceback of an error."""
    arguments: Annotated[Arguments, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="agent")] = (
        tyro.MISSING
    )
    """Arguments of the agent's constructor."""

    def policy_kwargs(self) -> dict[str, Any]:
        """Returns the arguments of the policy class that the options decide."""
        from torch import nn

        choices = {
            "net_arch": None if self.hidden_layers is None else list(self.hidden_layers),
            "activation_fn": self.activation and getattr(nn, ACTIVATIONS[self.activation]),
            "log_std_init": self.log_std_init,
        }
        return {name: value for name, value in choices.items() if value is not None}


# What may be different when a run is resumed.
CHANGEABLE = {
    "total_timesteps",
    "device",
    "eval_freq",
    "stop_at",
    "save_freq",
    "env_timeout",
    "resume",
    "progress_bar",
    "verbose",
}


def arguments_class(agent: type[OnPolicyAlgorithm]) -> type:
    """Makes the dataclass of an agent's constructor arguments, documented by its docstring."""
    documentation = _documented_arguments(inspect.getdoc(agent) or "")
    fields = [
        (
            name,
            Annotated[_data_only(parameter.annotation), tyro.conf.arg(help=documentation[name])],
            parameter.default,
        )
        for name, parameter in inspect.signature(agent).parameters.items()
        if name not in SET_BY_RUN
    ]
    return dataclasses.make_dataclass(f"{agent.__name__}Arguments", fields)


@functools.cache
def options_class(agent: str) -> type[Options]:
    """Returns the options of an agent's run."""
    return Options[arguments_class(AGENTS[agent])]


def _documented_arguments(docstring: str) -> dict[str, str]:
    """Reads the Args section of a Google docstring."""
    entries = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", docstring, flags=re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "`") for name, text in entries}


def _data_only(hint: Any) -> Any:
    """Drops callables from a union: a schedule cannot be typed on a command line."""
    members = typing.get_args(hint)
    kept = tuple(m for m in members if typing.get_origin(m) is not collections.abc.Callable)
    return hint if len(kept) == len(members) else typing.Union[kept]  # noqa: UP007 - a tuple
