"""`LeanVecEnv` against its oracle: `DummyVecEnv` of `Monitor`-wrapped environments."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from envs import LeanVecEnv


class Probe(gym.Env):
    """Counts its steps; every observation space, and bad habits on demand."""

    def __init__(self, observation_space: spaces.Space, length: int = 7, fail_at: int = -1) -> None:
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(3)
        self.render_mode = None
        self.length, self.fail_at, self.count = length, fail_at, 0
        self.reset_options: list[dict | None] = []
        self.reused_info: dict = {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.reset_options.append(options)
        if seed is not None:
            self.observation_space.seed(seed)
        self.count = 0
        return self.observation_space.sample(), {"seed": seed}

    def step(self, action):
        self.count += 1
        if self.count == self.fail_at:
            raise RuntimeError("boom")
        terminated, truncated = self.count % 5 == 0, self.count >= self.length
        self.reused_info["count"] = self.count
        reward = np.float64(action) + 0.1
        return self.observation_space.sample(), reward, terminated, truncated, self.reused_info


SPACES = {
    "box32": spaces.Box(-1, 1, (3,), np.float32),
    "box64": spaces.Box(-1, 1, (2, 2), np.float64),
    "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
    "scalar": spaces.Box(-1, 1, (), np.float32),
    "discrete": spaces.Discrete(5),
    "multidiscrete": spaces.MultiDiscrete([3, 4]),
    "multibinary": spaces.MultiBinary(4),
    "dict": spaces.Dict(a=spaces.Box(-1, 1, (3,), np.float32), b=spaces.Discrete(4)),
    "tuple": spaces.Tuple((spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(4))),
}


def assert_same_obs(ours, theirs) -> None:
    assert type(ours) is type(theirs) or isinstance(theirs, dict)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same_obs(ours[key], theirs[key])
    elif isinstance(theirs, tuple):
        for one, other in zip(ours, theirs, strict=True):
            assert_same_obs(one, other)
    else:
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype
        np.testing.assert_array_equal(ours, theirs)


def compare(makers, num_steps: int) -> int:
    """Step both vectors with the same actions; return the number of episodes."""
    ours = LeanVecEnv(makers)
    theirs = DummyVecEnv([lambda maker=maker: Monitor(maker()) for maker in makers])
    ours.seed(3), theirs.seed(3)
    assert_same_obs(ours.reset(), theirs.reset())
    ours.action_space.seed(0)
    episodes = 0
    for _ in range(num_steps):
        actions = np.array([ours.action_space.sample() for _ in makers])
        got, want = ours.step(actions), theirs.step(actions)
        assert_same_obs(got[0], want[0])
        for one, other in zip(got[1:3], want[1:3], strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        assert ours.reset_infos == theirs.reset_infos
        for index in np.flatnonzero(want[2]):
            mine, oracle = got[3][index], want[3][index]
            episodes += 1
            assert mine.keys() == oracle.keys()
            assert_same_obs(mine["terminal_observation"], oracle["terminal_observation"])
            assert mine["TimeLimit.truncated"] is bool(oracle["TimeLimit.truncated"])
            assert mine["episode"]["r"] == oracle["episode"]["r"]
            assert mine["episode"]["l"] == oracle["episode"]["l"]
            assert mine["episode"]["t"] >= 0
    return episodes


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_same_as_dummy_vec_env(env_id: str, num_envs: int) -> None:
    assert compare([lambda: gym.make(env_id)] * num_envs, 420) >= 2 * num_envs


def test_same_as_dummy_vec_env_on_mujoco() -> None:
    pytest.importorskip("mujoco")
    makers = [lambda: gym.make("HalfCheetah-v5", max_episode_steps=60)] * 2
    assert compare(makers, 130) == 4


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("name", SPACES)
def test_every_observation_space(name: str, num_envs: int) -> None:
    import copy

    makers = [lambda: Probe(copy.deepcopy(SPACES[name]))] * num_envs
    assert compare(makers, 30) == 6 * num_envs


def test_terminated_and_truncated_is_no_truncation() -> None:
    for length, flags in [(5, [False, False]), (3, [True, True])]:
        venv = LeanVecEnv([lambda length=length: Probe(SPACES["box32"], length=length)])
        venv.reset()
        infos = [venv.step(np.array([0]))[3][0] for _ in range(2 * length)]
        ends = [info["TimeLimit.truncated"] for info in infos if "episode" in info]
        assert ends == flags


@pytest.mark.parametrize("name", ["box32", "dict"])
def test_the_caller_may_keep_what_it_gets(name: str) -> None:
    venv = LeanVecEnv([lambda: Probe(SPACES[name])] * 2)
    kept = [venv.reset()] + [venv.step(np.array([0, 1])) for _ in range(6)]
    import copy

    copies = copy.deepcopy(kept[:-1])
    venv.step(np.array([2, 2]))
    for before, after in zip(copies, kept, strict=False):
        before, after = (before[:3], after[:3]) if isinstance(before, tuple) else (before, after)
        assert repr(before) == repr(after)


def test_a_reused_info_is_not_written_to() -> None:
    venv = LeanVecEnv([lambda: Probe(SPACES["box32"])])
    venv.reset()
    infos = [venv.step(np.array([0]))[3][0] for _ in range(6)]
    assert "episode" in infos[4]
    assert "episode" not in infos[5]
    assert venv.envs[0].reused_info == {"count": 1}


def test_an_exception_says_which_environment_and_when() -> None:
    fail_at = [-1, 4, -1]
    venv = LeanVecEnv([lambda k=k: Probe(SPACES["box32"], fail_at=k) for k in fail_at])
    venv.reset()
    for _ in range(3):
        venv.step(np.zeros(3, int))
    with pytest.raises(RuntimeError, match="boom") as caught:
        venv.step(np.zeros(3, int))
    assert caught.value.__notes__ == ["environment index 1 of 3, episode step 3"]


def test_an_exception_in_reset_says_which_environment() -> None:
    venv = LeanVecEnv([lambda: Probe(SPACES["box32"])] * 2)

    def broken(**kwargs):
        raise OSError("no disk")

    venv.envs[1].reset = broken
    with pytest.raises(OSError, match="no disk") as caught:
        venv.reset()
    assert caught.value.__notes__ == ["environment index 1 of 2, episode step 0"]


@pytest.mark.parametrize("when", ["reset", "step", "last step", "next reset"])
@pytest.mark.parametrize("name", ["box32", "dict"])
def test_an_observation_of_another_shape_is_refused(name: str, when: str) -> None:
    """One number, of which NumPy would make three."""
    venv = LeanVecEnv([lambda: Probe(SPACES[name])])
    if when != "reset":
        venv.reset()
    wrong = np.zeros(1, np.float32)
    if name == "dict":
        wrong = {"a": wrong, "b": np.int64(0)}
    env = venv.envs[0]
    env.reset = lambda **_: (wrong, {})
    if when != "reset":
        obs = SPACES[name].sample() if when == "next reset" else wrong
        env.step = lambda action: (obs, 0.0, when != "step", False, {})
    with pytest.raises(ValueError, match=r"has shape \(1,\) instead of \(3,\)") as caught:
        venv.reset() if when == "reset" else venv.step(np.zeros(1, int))
    assert "environment index 0 of 1" in caught.value.__notes__[0]


def test_monitor_is_reported_and_a_real_one_is_left_alone() -> None:
    bare = LeanVecEnv([lambda: gym.make("CartPole-v1")] * 2)
    assert bare.env_is_wrapped(Monitor) == [True, True]
    assert bare.env_is_wrapped(Monitor, indices=1) == [True]
    assert bare.env_is_wrapped(gym.wrappers.ClipReward) == [False, False]
    monitored = LeanVecEnv([lambda: Monitor(gym.make("CartPole-v1"), info_keywords=("x",))])
    monitored.envs[0].info_keywords = ()
    monitored.reset()
    infos = [monitored.step(np.array([0]))[3][0] for _ in range(30)]
    lengths = [info["episode"]["l"] for info in infos if "episode" in info]
    assert lengths == monitored.envs[0].get_episode_lengths()


def test_evaluate_policy_trusts_the_episodes(recwarn) -> None:
    class Zero:
        def predict(self, obs, state=None, episode_start=None, deterministic=False):
            return np.zeros(len(obs), int), state

    venv = LeanVecEnv([lambda: gym.make("CartPole-v1")] * 2)
    venv.seed(0)
    returns, lengths = evaluate_policy(Zero(), venv, 6, return_episode_rewards=True)
    assert returns == lengths
    assert all(8 <= length <= 11 for length in lengths)
    assert not [warning for warning in recwarn if "Monitor" in str(warning.message)]


def test_attributes_methods_options_and_seeds() -> None:
    venv = LeanVecEnv([lambda: Probe(SPACES["box32"])] * 2)
    venv.set_options([{"a": 1}, {}])
    assert venv.seed(11) == [11, 12]
    venv.reset()
    assert [info["seed"] for info in venv.reset_infos] == [11, 12]
    venv.reset()
    assert [info["seed"] for info in venv.reset_infos] == [None, None]
    assert venv.get_attr("reset_options") == [[{"a": 1}, None], [None, None]]
    venv.set_attr("length", 2, indices=[0])
    assert venv.get_attr("length") == [2, 7]
    assert venv.env_method("reset", seed=5, indices=1)[0][1] == {"seed": 5}
    assert not venv.has_attr("nothing")
    venv.close()


def test_render_tiles_images() -> None:
    pytest.importorskip("pygame")
    venv = LeanVecEnv([lambda: gym.make("CartPole-v1", render_mode="rgb_array")] * 2)
    venv.reset()
    assert venv.render().shape == (800, 600, 3)
    venv.close()


def test_bad_constructions() -> None:
    with pytest.raises(ValueError, match="env_fns is empty"):
        LeanVecEnv([])
    env = gym.make("CartPole-v1")
    with pytest.raises(ValueError, match="same instance"):
        LeanVecEnv([lambda: env] * 2)
