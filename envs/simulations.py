"""The state of a MuJoCo simulation, and what of its model decides how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Integers that a step does not compute anew from positions and velocities; gymnasium's models have
# no use for them, and as indices they are not to be believed.
_LASTING = ("eq_active", "tree_asleep")
_DRAWN = ("cam_", "light_", "mat_", "tex_", "skin_", "bvh_", "oct_")


def is_mujoco(value: object, name: str) -> bool:
    """Say whether a value is of one of MuJoCo's classes, without importing MuJoCo.

    Args:
        value: any.
        name: of the class: "MjData" is a simulation, "MjModel" what it simulates.

    Returns:
        Whether it is.
    """
    return type(value).__module__.startswith("mujoco") and type(value).__name__ == name


def arrays(data: Any) -> dict[str, np.ndarray]:
    """Copy all numbers of a simulation whose sizes are the model's.

    Not only positions and velocities: gymnasium reads body positions, forces and inertias that were
    computed within the last step. Contacts are found anew at each step, and so are indices.

    Args:
        data: the simulation.

    Returns:
        Arrays by name, the time among them.

    Raises:
        ValueError: if bodies sleep, or equality constraints were switched.
    """
    unused = type(data)(data.model)  # has nothing yet where sizes change from step to step
    for name in _LASTING:
        if not np.array_equal(getattr(data, name, None), getattr(unused, name, None)):
            raise ValueError(f"the simulation's {name} has changed, which is not taken")
    found = {"time": np.array(data.time)}
    for name in dir(data):
        value = None if name.startswith("_") else getattr(unused, name)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
            found[name] = getattr(data, name).copy()
    return found


def setting(data: Any, saved: Any, place: str) -> Callable[[], None]:
    """Check a saved simulation, and say how to give it to another one, which others may hold.

    Args:
        data: the simulation.
        saved: what `arrays` returned.
        place: where it stands, for the error.

    Returns:
        A function that does it, and does not fail.

    Raises:
        ValueError: if it is of another model.
    """
    present = arrays(data)
    if not isinstance(saved, Mapping) or _forms(saved) != _forms(present):
        raise ValueError(f"{place} is the state of another MuJoCo model")

    def put() -> None:
        for name, array in saved.items():
            if name == "time":
                data.time = float(array)
            else:
                getattr(data, name)[...] = array

    return put


def physics(model: Any) -> dict[str, Any]:
    """Collect what of a model decides how a simulation goes on.

    Args:
        model: the model.

    Returns:
        Arrays and numbers by name.
    """
    found: dict[str, Any] = {}
    for part in (model, model.opt):
        for name in dir(part):
            value = None if name.startswith(("_", *_DRAWN)) else getattr(part, name)
            if isinstance(value, np.ndarray) or type(value) in (int, float):
                found[name] = value
    return found


def _forms(values: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {
        name: (value.dtype, value.shape) if isinstance(value, np.ndarray) else ()
        for name, value in values.items()
    }
