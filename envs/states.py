"""The state of environments, taken and given back: what a continued run goes on from.

Gymnasium has no method for it. What is taken here are the attributes that
:mod:`envs.known_states` names (of classic control, toy text and MuJoCo, and of gymnasium's usual
wrappers) and what classes have made known by :func:`register`; of others there is none.
All other attributes are settings: they are never changed, and environments that have others than
those that the state was taken of are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecNormalize,
    VecTransposeImage,
)

from envs.described import described, digest, is_data, setting
from envs.known_states import BESIDE, state_names
from envs.lean import LeanVecEnv
from envs.normalize import LeanVecNormalize
from envs.pool import EnvPoolVecEnv
from envs.simulations import is_mujoco

State = dict[str, Any]
Layer = gym.Env | VecEnv
Take = Callable[[Any], State]
Give = Callable[[Any, State], None]

# Their state is part of the agent's checkpoint, which holds one of them.
_NORMALISERS = (VecNormalize, LeanVecNormalize)
# They have none.
_STATELESS = (VecTransposeImage, VecCheckNan, VecExtractDictObs)
_registered: dict[type, tuple[Take, Give]] = {}


class NoState(Exception):
    """The state of environments cannot be taken or given back; the message says why."""


def register(kind: type[Layer], take: Take, give: Give) -> None:
    """Makes the state of a class of environments, or of wrappers of one or of a vector, known.

    Args:
        kind: The class, without its subclasses.
        take: Returns the state as numbers, strings, arrays, lists and dictionaries; not that of an
            environment inside, which is taken beside it.
        give: Puts an environment into a state that ``take`` returned. One that does not fit it
            refuses by an exception, before it changes anything.
    """
    _registered[kind] = take, give


def take(env: VecEnv) -> State:
    """Takes the state of a vector of environments between two steps.

    Args:
        env: The vector, perhaps inside of wrappers, of which a normaliser is saved elsewhere.

    Returns:
        Numbers, strings, arrays, lists and dictionaries.

    Raises:
        NoState: If a simulator does not give it away, or it is not known what it consists of.
    """
    with _reasons():
        vectors, bottom = _vectors(env)
        state: State = {"vectors": [_taken(vector) for vector in vectors]}
        if isinstance(bottom, LeanVecEnv):
            state["environments"] = [list(map(_taken, _layers(one))) for one in bottom.envs]
            state["episodes"] = bottom.episode_state()
        return state


def give(env: VecEnv, state: State) -> None:
    """Puts a vector of environments into a state that :func:`take` returned.

    Everything is checked before anything is changed.

    Args:
        env: A vector of as many environments, made in the same way.
        state: What was taken.

    Raises:
        NoState: If the state is one of other environments, or damaged.
    """
    with _reasons():
        vectors, bottom = _vectors(env)
        pairs = _pairs(vectors, state["vectors"])
        episodes = state.get("episodes")
        if isinstance(bottom, LeanVecEnv):
            saved = state["environments"]
            if len(saved) != bottom.num_envs:
                raise NoState(f"the state is of {len(saved)} environments, not {bottom.num_envs}")
            for single, content in zip(bottom.envs, saved, strict=True):
                pairs += _pairs(_layers(single), content)
            bottom.check_episode_state(episodes)
        elif episodes is not None:
            raise NoState(f"the state is of another vector than {_name(bottom)}")
        puts: list[Callable[[], None]] = []
        for layer, content in pairs:
            if type(layer) not in _registered:
                puts += _checked(layer, content)
        for layer, content in pairs:
            if type(layer) in _registered:  # which check by themselves, and so come before the rest
                _registered[type(layer)][1](layer, content["state"])
        for put in puts:
            put()
        if isinstance(bottom, LeanVecEnv):
            bottom.restore_episode_state(episodes)


@contextmanager
def _reasons() -> Iterator[None]:
    """Whatever environments raise is a reason to begin their episodes anew, and no more."""
    try:
        yield
    except NoState:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise NoState(f"the state of the environments cannot be had: {reason}") from error


def _vectors(env: VecEnv) -> tuple[list[Layer], VecEnv]:
    """The vectors with a state of their own, from the outside in, and the innermost of all."""
    found: list[Layer] = []
    normalisers = 0
    while True:
        kind = type(env)
        normalisers += kind in _NORMALISERS
        if normalisers > 1:
            raise NoState("there are two normalisers, and a checkpoint holds the state of one")
        if kind in _registered:
            found.append(env)
        elif kind is EnvPoolVecEnv:
            raise NoState("EnvPool has no way to ask for the state of its simulators, or to set it")
        elif kind is not LeanVecEnv and kind not in (*_NORMALISERS, *_STATELESS):
            raise _unknown(env)
        if not isinstance(env, VecEnvWrapper):
            return found, env
        env = env.venv


def _layers(env: gym.Env) -> list[Layer]:
    """The wrappers from the outside in, and the environment."""
    layers: list[Any] = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _name(layer: Layer) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _unknown(layer: Layer) -> NoState:
    return NoState(
        f"what the state of {_name(layer)} consists of is not known "
        "(envs.states.register makes it known)"
    )


def _state_names(layer: Layer) -> set[str]:
    names = state_names(type(layer))
    if names is None:
        raise _unknown(layer)
    return names


def _taken(layer: Layer) -> State:
    name = _name(layer)
    if type(layer) in _registered:
        return {"class": name, "state": _registered[type(layer)][0](layer)}
    names, present = _state_names(layer), vars(layer)
    state = {key: described(present[key], f"{name}.{key}") for key in names if key in present}
    return {"class": name, "state": state, "settings": _settings(layer, names)}


def _settings(layer: Layer, names: set[str]) -> dict[str, str]:
    """Digests of all that is data and no state; functions and spaces cannot be compared."""
    found = {key: value for key, value in vars(layer).items() if key not in names | BESIDE}
    spec = None if isinstance(layer, gym.Wrapper) else getattr(layer, "spec", None)
    if spec is not None:
        found["arguments"] = {key: value for key, value in spec.kwargs.items() if is_data(value)}
    return {
        key: digest(value)
        for key, value in found.items()
        if value is not None and (is_data(value) or is_mujoco(value, "MjModel"))
    }


def _pairs(layers: list[Layer], saved: list[State]) -> list[tuple[Layer, State]]:
    """Each layer with what was saved of it."""
    if [content["class"] for content in saved] != [_name(layer) for layer in layers]:
        innermost = saved[-1]["class"] if saved else "none"
        raise NoState(f"the state is of {innermost} in other wrappers than here")
    return list(zip(layers, saved, strict=True))


def _checked(layer: Layer, saved: State) -> list[Callable[[], None]]:
    """Checks the state of a layer; returns what puts it there."""
    names, name = _state_names(layer), _name(layer)
    ours, theirs, state = _settings(layer, names), saved["settings"], saved["state"]
    other = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    if other:
        raise NoState(f"{name} was made with other arguments: {', '.join(other)} differ")
    if not names.issuperset(state):
        raise NoState(f"{', '.join(sorted({*state} - names))} are no state of {name}")
    return [setting(vars(layer), key, value, f"{name}.{key}") for key, value in state.items()]
