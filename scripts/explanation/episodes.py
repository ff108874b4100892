"""Episodes as the policy saw them, and its observations as flat vectors with names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from npg.errors import ConfigurationError

Observation = Tensor | dict[str, Tensor]


class Coordinates:
    """The coordinates of an observation space: a vector, or a dictionary of vectors.

    Args:
        space: Of the observations.
        names: Of the coordinates. Default: o0, o1, …, or key.0, key.1, ….

    Raises:
        ConfigurationError: If the space has no such coordinates, or other than there are names.
    """

    def __init__(self, space: spaces.Space, names: Sequence[str] | None = None) -> None:
        self.space = space
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"o": space}
        for part in parts.values():
            if not isinstance(part, spaces.Box) or is_image_space(part):
                raise ConfigurationError(
                    f"observations of the space {part} have no coordinates to be ranked: "
                    "explain.py is for vectors (Box) and dictionaries of vectors, not for images "
                    "and numbers of classes"
                )
        self.sizes = {key: int(np.prod(part.shape)) for key, part in parts.items()}
        separator = "." if isinstance(space, spaces.Dict) else ""
        found = [f"{k}{separator}{i}" for k, size in self.sizes.items() for i in range(size)]
        self.names = list(names or found)
        if len(self.names) != len(found):
            raise ConfigurationError(
                f"there are {len(found)} coordinates, and {len(self.names)} names for them"
            )

    def flat(self, observation: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
        """Makes an array [N, D] of what environments give."""
        parts = observation if isinstance(observation, dict) else {"o": observation}
        return np.concatenate([parts[k].reshape(len(parts[k]), -1) for k in self.sizes], axis=1)

    def shaped(self, flat: Tensor) -> Observation:
        """Makes of a tensor [N, D] what the policy takes."""
        pieces = dict(zip(self.sizes, flat.split(list(self.sizes.values()), dim=1), strict=True))
        if not isinstance(self.space, spaces.Dict):
            return flat.reshape(len(flat), *self.space.shape)
        return {k: p.reshape(len(flat), *self.space[k].shape) for k, p in pieces.items()}


@dataclass
class Episodes:
    """What happened, one row a step.

    Attributes:
        observations: As the policy saw them, normalised if it learnt so [T, D].
        actions: As the environment took them [T, ...].
        rewards: Undivided [T].
        episode: Number of the episode [T].
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    episode: np.ndarray

    def first(self) -> slice:
        """The rows of the first episode."""
        return slice(0, int((self.episode == 0).sum()))


def play(
    model: OnPolicyAlgorithm,
    env: VecEnv,
    coordinates: Coordinates,
    episodes: int,
    length: int | None = None,
    on_step: Callable[[int], None] = lambda _: None,
) -> Episodes:
    """Plays episodes one after another in the first environment, by the most probable actions.

    Args:
        model: The agent.
        env: Environments as it knows them; one is enough.
        coordinates: Of the observations.
        episodes: How many.
        length: Steps after which an episode is broken off.
        on_step: Called with the number of episodes that are over.

    Returns:
        The episodes.

    Raises:
        ValueError: If an observation is not finite.
    """
    rows: dict[str, list] = {"observations": [], "actions": [], "rewards": [], "episode": []}
    for number in range(episodes):
        observation = env.reset()
        done, steps = False, 0
        while not done and steps != length:
            flat = coordinates.flat(observation)[0]
            if not np.isfinite(flat).all():
                raise ValueError(f"the observation of step {steps} is not finite")
            action, _ = model.predict(observation, deterministic=True)
            rows["observations"].append(flat)
            rows["actions"].append(action[0])
            rows["episode"].append(number)
            observation, reward, dones, _ = env.step(action)
            rows["rewards"].append(float(reward[0]))
            done, steps = bool(dones[0]), steps + 1
            on_step(number)
    return Episodes(**{name: np.array(values) for name, values in rows.items()})


def tensors(played: Episodes, model: BasePolicy) -> tuple[Tensor, Tensor]:
    """Returns observations and actions as the policy takes them."""
    kind = torch.long if isinstance(model.action_space, spaces.Discrete) else torch.float32
    actions = torch.as_tensor(played.actions, dtype=kind, device=model.device)
    observations = torch.as_tensor(played.observations, dtype=torch.float32, device=model.device)
    return observations, actions
