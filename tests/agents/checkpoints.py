"""What the tests of checkpoints share: an environment, what an agent would do, equal states."""

import numpy as np
import torch

from tests.agents.helpers import BOX, VECTOR, Toy, vector_env


def box_env(count: int = 1):
    return vector_env(lambda: Toy(VECTOR, BOX), count)


def some_observations(rows: int = 6) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(rows, 3)).astype(np.float32)


def actions_of(agent) -> np.ndarray:
    return agent.predict(some_observations(), deterministic=True)[0]


def flattened(state) -> list:
    """All leaves of nested dictionaries and lists, in order."""
    if isinstance(state, dict):
        return [leaf for key in sorted(state, key=str) for leaf in flattened(state[key])]
    if isinstance(state, list | tuple):
        return [leaf for item in state for leaf in flattened(item)]
    return [state]


def equal_states(first, second) -> bool:
    a, b = flattened(first), flattened(second)
    return len(a) == len(b) and all(
        torch.equal(torch.as_tensor(x), torch.as_tensor(y))
        if isinstance(x, torch.Tensor | np.ndarray)
        else x == y
        for x, y in zip(a, b, strict=True)
    )
