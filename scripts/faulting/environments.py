"""CartPole with a fault, each once: the run that goes on after it meets none.

Importing this registers them: `--env faulting.environments:Raises-v0`. The fault comes at a step of
the process, counted over all its environments, and leaves the file that ``MARK`` names.
"""

import os
import time
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

MARK = "NPG_FAULT_MARK"  # a variable of the process's environment
LENGTH = 50  # of an episode at most
# Of runs that evaluate two episodes every 512 steps: the first evaluation begins at 512.
IN_EVALUATION, IN_TRAINING = 530, 900


class Sound(CartPoleEnv):
    """CartPole without a fault."""


class Faulty(CartPoleEnv):
    """CartPole until its time has come."""

    steps: ClassVar[int] = 0
    at: ClassVar[int] = IN_TRAINING

    def step(self, action: int) -> tuple[Any, ...]:
        """As CartPole, but for one."""
        Faulty.steps += 1
        result = super().step(action)
        return self.fault(*result) if self.due() else result

    def due(self) -> bool:
        """Whether the fault comes now."""
        mark = Path(os.environ[MARK])
        if Faulty.steps < self.at or mark.exists():
            return False
        mark.touch()
        return True

    def fault(self, obs: np.ndarray, reward: float, *rest: Any) -> tuple[Any, ...]:
        """What happens then, and what is returned, if anything."""
        raise NotImplementedError


class FaultyReset(Faulty):
    """The same, in a reset."""

    def step(self, action: int) -> tuple[Any, ...]:
        """As CartPole."""
        Faulty.steps += 1
        return CartPoleEnv.step(self, action)

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """As CartPole, but for one."""
        obs, info = super().reset(**options)
        return self.fault(obs, 0.0)[0] if self.due() else obs, info


class Raises(Faulty):
    def fault(self, *_: Any) -> tuple[Any, ...]:
        raise ConnectionError("the simulator does not answer")


class RaisesInReset(FaultyReset, Raises):
    pass


class RaisesInEvaluation(Raises):
    at = IN_EVALUATION


class Hangs(Faulty):
    def fault(self, *result: Any) -> tuple[Any, ...]:
        time.sleep(3600)
        return result


class HangsInReset(FaultyReset, Hangs):
    pass


class HangsInEvaluation(Hangs):
    at = IN_EVALUATION


class NaNObservation(Faulty):
    def fault(self, obs: np.ndarray, *rest: Any) -> tuple[Any, ...]:
        return np.full_like(obs, np.nan), *rest


class NaNReward(Faulty):
    def fault(self, obs: np.ndarray, reward: float, *rest: Any) -> tuple[Any, ...]:
        return obs, float("nan"), *rest


class LongerObservation(Faulty):
    def fault(self, obs: np.ndarray, *rest: Any) -> tuple[Any, ...]:
        return np.append(obs, np.float32(0)), *rest


class ShorterObservation(Faulty):
    """One number, of which NumPy would make four."""

    def fault(self, obs: np.ndarray, *rest: Any) -> tuple[Any, ...]:
        return obs[:1], *rest


KINDS = (
    Sound,
    Raises,
    RaisesInReset,
    RaisesInEvaluation,
    Hangs,
    HangsInReset,
    HangsInEvaluation,
    NaNObservation,
    NaNReward,
    LongerObservation,
    ShorterObservation,
)
for kind in KINDS:
    gym.register(f"{kind.__name__}-v0", kind, max_episode_steps=LENGTH)
