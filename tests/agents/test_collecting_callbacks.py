"""Rollouts as callbacks see and stop them, and faults of an environment, which are named."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor

from agents import TRPO
from npg.errors import NumericalError
from tests.agents.helpers import (
    BOX,
    DICTIONARY,
    VECTOR,
    Toy,
    every_agent,
    parameters,
    same,
    small,
    vector_env,
)
from tests.agents.rollouts import collect

# ------------------------------------------------------------------------ what callbacks can see


class Looker(BaseCallback):
    """Keeps copies of the locals of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict] = []
        self.ended: dict = {}

    def _on_step(self) -> bool:
        names = ("new_obs", "rewards", "dones", "infos", "actions", "clipped_actions", "n_steps")
        self.seen.append({name: self.locals[name] for name in names})
        assert self.locals["env"] is self.model.env
        assert self.locals["rollout_buffer"] is self.model.rollout_buffer
        assert self.num_timesteps == self.model.num_timesteps
        return True

    def _on_rollout_end(self) -> None:
        self.ended = {"advantages": self.model.rollout_buffer.advantages.copy()}


def test_locals_hold_the_transition() -> None:
    looker = Looker()
    model = small(TRPO, vector_env(lambda: Toy(VECTOR, BOX), 2))
    collect(model, looker)
    buffer = model.rollout_buffer
    assert [s["n_steps"] for s in looker.seen] == list(range(64))
    for t, step in enumerate(looker.seen):
        np.testing.assert_array_equal(step["rewards"], buffer.rewards[t])
        np.testing.assert_array_equal(step["actions"], buffer.actions[t])
        np.testing.assert_array_equal(step["clipped_actions"], np.clip(step["actions"], -1, 1))
        if t < 63:
            np.testing.assert_array_equal(step["new_obs"], buffer.observations[t + 1])
            np.testing.assert_array_equal(step["dones"], buffer.episode_starts[t + 1])
        assert len(step["infos"]) == 2
    np.testing.assert_array_equal(looker.seen[-1]["new_obs"], model._last_obs)
    np.testing.assert_array_equal(looker.ended["advantages"], buffer.advantages)
    assert np.abs(buffer.actions).max() > 1  # what was sampled is stored, not what was clipped


class Stop(BaseCallback):
    def __init__(self, at: int, answer) -> None:
        super().__init__()
        self.at, self.answer = at, answer

    def _on_step(self) -> bool:
        return self.answer if self.n_calls == self.at else True


@every_agent
@pytest.mark.parametrize("answer", [False, np.bool_(False), torch.tensor(False), 0])
def test_callbacks_can_stop_the_training(agent, answer) -> None:
    model = small(agent, vector_env(Toy, 2))
    before = parameters(model)
    model.learn(64 * 2 * 4, callback=Stop(10, answer))
    assert model.num_timesteps == 20
    assert model._n_updates == 0
    assert same(before, parameters(model))
    model.learn(128)  # and it can begin again
    assert model._n_updates == 1


class Success(Toy):
    def step(self, action):
        *transition, _ = super().step(action)
        return *transition, {"is_success": self.steps % 2 == 0}


def test_episode_statistics_and_successes() -> None:
    env = vector_env(lambda: Monitor(Success(death=0.0, limit=4)), 2)
    model = small(TRPO, env, stats_window_size=10)
    model.learn(128)
    assert len(model.ep_info_buffer) == 10
    assert {info["l"] for info in model.ep_info_buffer} == {4}
    assert list(model.ep_success_buffer) == [True] * 10
    assert model.logger.name_to_value["train/n_updates"] == 1
    odd = vector_env(lambda: Monitor(Success(death=0.0, limit=5)))
    assert not any(small(TRPO, odd).learn(64).ep_success_buffer)


# ------------------------------------------------------------------------------------------- faults


class Faulty(Toy):
    """Step 20 of this environment goes wrong."""

    fault = "reward"
    value = np.nan

    def step(self, action):
        observation, reward, *rest = super().step(action)
        if self.total == 20:
            if self.fault == "reward":
                reward = self.value
            elif self.fault == "observation":
                observation = np.full_like(observation, self.value)
            else:
                raise OSError("the simulator is gone")
        return observation, reward, *rest


def faulty(fault: str, value: float = np.nan) -> Faulty:
    env = Faulty(limit=1000, death=0.0)
    env.fault, env.value = fault, value
    return env


@every_agent
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("fault", "step"), [("reward", 19), ("observation", 20)])
def test_numbers_that_are_not_finite_are_named_and_nothing_is_learned(
    agent, fault, step, value
) -> None:
    scripts = iter([Toy(), Toy(), faulty(fault, value)])
    model = small(agent, vector_env(lambda: next(scripts), 3))
    before = parameters(model)
    with pytest.raises(NumericalError, match=f"{fault} of environment 2 at step {step}") as raised:
        model.learn(64 * 3)
    assert isinstance(raised.value, ValueError)
    assert same(before, parameters(model))
    assert model._n_updates == 0


@every_agent
def test_an_environment_that_raises_is_not_hidden(agent) -> None:
    model = small(agent, vector_env(lambda: faulty("raise")))
    before = parameters(model)
    with pytest.raises(OSError, match="the simulator is gone"):
        model.learn(64)
    assert same(before, parameters(model))
    model.learn(64)  # the fault passes: training can go on
    assert model._n_updates == 1


def test_infinite_observations_of_a_dictionary_are_named_by_key() -> None:
    class Broken(Toy):
        def _observe(self):
            observation = super()._observe()
            if self.total == 5:
                observation["angle"][0] = np.inf
            return observation

    model = small(TRPO, vector_env(lambda: Broken(DICTIONARY)), "MultiInputPolicy")
    with pytest.raises(NumericalError, match="angle of environment 0 at step 5"):
        model.learn(64)
