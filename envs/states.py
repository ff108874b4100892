"""The state of environments, taken and given back: what a continued run goes on from.

Gymnasium has no method for it. What is taken here is every attribute of an environment and of its
wrappers that is data: numbers, arrays, generators, MuJoCo's simulation. This is all there is to the
state of classic control, toy text and MuJoCo, of gymnasium's usual wrappers and of this library's
environments; anything else has to be made known by :func:`register`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from envs.lean import LeanVecEnv

State = dict[str, Any]
Take = Callable[[gym.Env], State]
Give = Callable[[gym.Env, State], None]

# Where environments and wrappers are defined whose state is their data.
_KNOWN = [
    "envs",
    "gymnasium.envs.classic_control",
    "gymnasium.envs.mujoco",
    "gymnasium.envs.toy_text",
    "gymnasium.wrappers.common",
    "gymnasium.wrappers.transform_action",
    "gymnasium.wrappers.transform_observation",
    "gymnasium.wrappers.transform_reward",
    "stable_baselines3.common.monitor",
]
_registered: dict[type, tuple[Take, Give]] = {}


class NoState(Exception):
    """The state of environments cannot be taken; the message says of which and why."""


def register(kind: type[gym.Env], take: Take, give: Give) -> None:
    """Makes the state of a class of environments or wrappers known.

    Args:
        kind: The class, without its subclasses.
        take: Returns the state as numbers, strings, arrays, lists and dictionaries; not that of an
            environment inside, which is taken beside it.
        give: Puts an environment into a state that ``take`` returned.
    """
    _registered[kind] = take, give


def take(env: VecEnv) -> State:
    """Takes the state of a vector of environments between two steps.

    Args:
        env: The vector, perhaps inside of wrappers, of which a normaliser is saved elsewhere.

    Returns:
        Numbers, strings, arrays, lists and dictionaries.

    Raises:
        NoState: If a simulator does not give it away.
    """
    vector = _vector(env)
    environments = [[_layer(layer) for layer in _layers(single)] for single in vector.envs]
    return {"environments": environments, "episodes": vector.episode_state()}


def give(env: VecEnv, state: State) -> None:
    """Puts a vector of environments into a state that :func:`take` returned.

    Args:
        env: A vector of as many environments, made in the same way.
        state: What was taken.

    Raises:
        NoState: If the state is one of other environments.
    """
    vector = _vector(env)
    environments = state["environments"]
    if len(environments) != vector.num_envs:
        raise NoState(f"the state is of {len(environments)} environments, not {vector.num_envs}")
    for single, saved in zip(vector.envs, environments, strict=True):
        layers = _layers(single)
        if [layer["class"] for layer in saved] != [_name(layer) for layer in layers]:
            raise NoState(f"the state is of {saved[-1]['class']} in other wrappers than here")
        for layer, content in zip(layers, saved, strict=True):
            _restore(layer, content["state"])
    vector.restore_episode_state(state["episodes"])


def _vector(env: VecEnv) -> LeanVecEnv:
    inner: Any = env
    while not isinstance(inner, LeanVecEnv):
        if not hasattr(inner, "venv"):
            raise NoState(f"{type(inner).__name__} does not give the state of its simulators away")
        inner = inner.venv
    return inner


def _layers(env: gym.Env) -> list[gym.Env]:
    """The wrappers from the outside in, and the environment."""
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _name(layer: gym.Env) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _layer(layer: gym.Env) -> State:
    name = _name(layer)
    if type(layer) in _registered:
        return {"class": name, "state": _registered[type(layer)][0](layer)}
    if not any(name.startswith(f"{known}.") for known in _KNOWN):
        raise NoState(
            f"what the state of {name} consists of is not known: "
            "envs.states.register(...) tells it, or episodes begin anew"
        )
    data = {key: _described(value) for key, value in vars(layer).items() if _is_data(value)}
    return {"class": name, "state": data}


def _restore(layer: gym.Env, state: State) -> None:
    if type(layer) in _registered:
        _registered[type(layer)][1](layer, state)
        return
    for key, described in state.items():
        current = vars(layer).get(key)
        if isinstance(current, np.random.Generator) or _is_simulation(current):
            _put(current, described)
        elif isinstance(described, dict) and "bit_generator" in described:
            # Made at the first reset, which there was none of here.
            kind = getattr(np.random, described["bit_generator"])
            generator = np.random.Generator(kind())
            generator.bit_generator.state = described
            setattr(layer, key, generator)
        else:
            setattr(layer, key, deepcopy(described))


def _is_data(value: object) -> bool:
    if isinstance(value, list | tuple | deque):
        return all(map(_is_data, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_data(item) for key, item in value.items())
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    plain = bool | int | float | str | np.generic | np.random.Generator | None
    return isinstance(value, plain) or _is_simulation(value)


def _described(value: Any) -> Any:
    if isinstance(value, np.random.Generator):
        return dict(value.bit_generator.state)
    if _is_simulation(value):
        return _arrays(value)
    return str(value) if isinstance(value, np.str_) else deepcopy(value)


def _put(current: Any, described: State) -> None:
    """Gives a generator or a simulation, which others may hold, its state in its place."""
    if isinstance(current, np.random.Generator):
        current.bit_generator.state = described
        return
    arrays = _arrays(current)
    if {k: v.shape for k, v in arrays.items()} != {k: v.shape for k, v in described.items()}:
        raise NoState("the state is of another MuJoCo model")
    for name, array in described.items():
        if name == "time":
            current.time = float(array)
        else:
            getattr(current, name)[...] = array


# --------------------------------------------------------------------------------------- MuJoCo


def _is_simulation(value: object) -> bool:
    return type(value).__module__.startswith("mujoco") and type(value).__name__ == "MjData"


def _arrays(data: Any) -> State:
    """All arrays of an MjData whose sizes are the model's; contacts are found anew at each step."""
    # Not only positions and velocities: gymnasium reads body positions, forces and inertias that
    # were computed within the last step.
    unused = type(data)(data.model)  # has nothing yet where sizes change from step to step
    found = {"time": np.array(data.time)}
    for name in dir(data):
        value = None if name.startswith("_") else getattr(unused, name)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size:
            found[name] = getattr(data, name).copy()
    return found
