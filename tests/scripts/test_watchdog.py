"""The end of a run whose environment hangs."""

import threading
import time

import gymnasium as gym
import numpy as np
import pytest
from training.home import Home
from training.watchdog import Watchdog

from envs import LeanVecEnv

TIMEOUT = 0.4


class Waiting(gym.Wrapper):
    """CartPole that waits in one of its calls."""

    def __init__(self, where, until):
        super().__init__(gym.make("CartPole-v1"))
        self.where, self.until = where, until

    def step(self, action):
        if self.where == "step":
            self.until()
        return self.env.step(action)

    def reset(self, **options):
        if self.where == "reset":
            self.until()
        return self.env.reset(**options)


@pytest.fixture
def watched(tmp_path):
    """Runs two environments, of which the second does something; returns what the watchdog did."""

    def run(where, until=None, timeout=TIMEOUT, steps=1):
        told, over = [], threading.Event()

        def end(code):
            told.append(code)
            over.set()

        def rescue():
            told.append("saved")
            return "the agent is saved: here"

        until = until or (lambda: over.wait(60))
        watchdog = Watchdog(timeout, Home(tmp_path, None, None), "Waiting-v0", rescue, end)
        venv = LeanVecEnv([lambda: gym.make("CartPole-v1"), lambda: Waiting(where, until)])
        with watchdog:
            venv.reset()
            for _ in range(steps):
                venv.step(np.zeros(2, int))
        return told

    return run


@pytest.mark.parametrize("where", ["step", "reset"])
def test_a_call_that_does_not_return_ends_the_run(watched, where, tmp_path, capfd):
    assert watched(where) == ["saved", 1]
    error = capfd.readouterr().err
    said = f"environment 1 of 2 (Waiting-v0) has not returned from {where} for {TIMEOUT:g} s"
    assert said in error
    assert "the agent is saved: here" in error
    assert f"in {where}" in (tmp_path / "stacks.txt").read_text()


def test_many_calls_may_take_longer_together(watched):
    assert watched("step", lambda: time.sleep(0.5 * TIMEOUT), steps=4) == []


def test_what_is_not_in_an_environment_may_take_longer(watched, tmp_path):
    watchdog = Watchdog(
        0.1, Home(tmp_path, None, None), "", lambda: "", lambda code: pytest.fail("ended")
    )
    with watchdog:
        time.sleep(0.4)
    assert not (tmp_path / "stacks.txt").exists()


def test_zero_waits(watched):
    assert watched("step", lambda: time.sleep(1.0), timeout=0) == []


def test_no_update_begins_while_the_agent_is_being_saved(tmp_path):
    watchdog = Watchdog(1.0, Home(tmp_path, None, None), "", lambda: "")
    ended = threading.Thread(target=watchdog.on_rollout_end, daemon=True)
    with watchdog._ending:
        ended.start()
        ended.join(0.1)
        assert ended.is_alive()
    ended.join(10)
    assert not ended.is_alive()
