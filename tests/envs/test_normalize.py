"""`LeanVecNormalize` against its oracle, Stable-Baselines3's `VecNormalize`."""

from __future__ import annotations

import copy
import io
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

from envs import (
    LeanVecEnv,
    LeanVecNormalize,
    load_normalization_state,
    normalization_state,
    normalizer_from_state,
)

BOX32 = spaces.Box(-5, 5, (3,), np.float32)
BOX64 = spaces.Box(-5, 5, (2, 2), np.float64)
IMAGE = spaces.Box(0, 255, (4, 4, 3), np.uint8)
DICT = spaces.Dict(a=BOX32, b=BOX64, c=spaces.Discrete(3))


class Stream(gym.Env):
    """Random observations and rewards; episodes of six steps."""

    def __init__(self, space: spaces.Space) -> None:
        self.observation_space = copy.deepcopy(space)
        self.action_space = spaces.Discrete(2)
        self.render_mode = None
        self.count = 0
        self.poison: dict[str, float] = {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.count = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.count += 1
        obs = self.observation_space.sample()
        if "obs" in self.poison:
            (obs["a"] if isinstance(obs, dict) else obs).flat[0] = self.poison["obs"]
        reward = self.poison.get("reward", 30 * self.np_random.standard_normal() + 5)
        return obs, reward, self.count == 6, False, {}


def stream(space: spaces.Space, num_envs: int) -> LeanVecEnv:
    venv = LeanVecEnv([lambda: Stream(space)] * num_envs)
    venv.seed(4)
    return venv


def pair(space: spaces.Space, num_envs: int, **settings):
    return (
        LeanVecNormalize(stream(space, num_envs), **settings),
        VecNormalize(stream(space, num_envs), **settings),
    )


def assert_same(one, other, tolerance: float) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key], tolerance)
    else:
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def assert_same_statistics(one: VecNormalize, other: VecNormalize, tolerance=1e-12) -> None:
    ours, theirs = normalization_state(one), normalization_state(other)
    assert ours["obs_rms"].keys() == theirs["obs_rms"].keys()
    for key in (*ours["obs_rms"], None):
        mine = ours["ret_rms"] if key is None else ours["obs_rms"][key]
        oracle = theirs["ret_rms"] if key is None else theirs["obs_rms"][key]
        for name in ("mean", "var", "count"):
            torch.testing.assert_close(mine[name], oracle[name], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours["returns"], theirs["returns"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize(
    ("space", "settings"),
    [
        (BOX32, {}),
        (BOX64, {"clip_obs": 0.5, "clip_reward": 0.3, "gamma": 0.9, "epsilon": 1e-4}),
        (IMAGE, {}),
        (BOX32, {"norm_obs": False}),
        (BOX32, {"norm_reward": False}),
        (BOX32, {"training": False}),
        (DICT, {"norm_obs_keys": ["a", "b"]}),
        (spaces.Discrete(4), {"norm_obs": False}),
    ],
    ids=["box32", "box64", "image", "no-obs", "no-reward", "frozen", "dict", "discrete"],
)
def test_same_as_vec_normalize(space, settings, num_envs: int) -> None:
    ours, theirs = pair(space, num_envs, **settings)
    assert ours.observation_space == theirs.observation_space
    assert_same(ours.reset(), theirs.reset(), 1e-6)
    ends = 0
    for step in range(60):
        if step == 40:
            ours.training = theirs.training = not ours.training
        if step == 50:
            assert_same(ours.reset(), theirs.reset(), 1e-6)
        actions = np.zeros(num_envs, int)
        got, want = ours.step(actions), theirs.step(actions)
        assert_same(got[0], want[0], 1e-6)
        assert_same(got[1], want[1], 1e-6)
        np.testing.assert_array_equal(got[2], want[2])
        for one, other in zip(got[3], want[3], strict=True):
            assert one.keys() == other.keys()
            if "terminal_observation" in one:
                ends += 1
                last, oracle = one["terminal_observation"], other["terminal_observation"]
                if isinstance(space, spaces.Discrete):
                    assert last == oracle
                else:
                    assert_same(last, oracle, 1e-6)
        # Stable-Baselines3 averages a float32 batch in float32.
        assert_same_statistics(ours, theirs, 1e-12 if num_envs == 1 or space is IMAGE else 1e-6)
        assert_same(ours.get_original_obs(), theirs.get_original_obs(), 0)
        assert_same(ours.get_original_reward(), theirs.get_original_reward(), 0)
        assert_same(ours.unnormalize_reward(got[1]), theirs.unnormalize_reward(want[1]), 1e-5)
    assert ends == 9 * num_envs


def test_first_statistics_by_hand() -> None:
    # Prior: mean 0, variance 1, count 1e-4. One sample x: total = 1.0001,
    # mean = x/1.0001, variance = (1e-4 + x²·1e-4/1.0001)/1.0001.
    ours, _ = pair(BOX64, 1)
    ours.reset()
    x = ours.get_original_obs()[0]
    np.testing.assert_allclose(ours.obs_rms.mean, x / 1.0001, rtol=1e-12)
    expected = (1e-4 + x**2 * 1e-4 / 1.0001) / 1.0001
    np.testing.assert_allclose(ours.obs_rms.var, expected, rtol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["obs", "reward"])
@pytest.mark.parametrize("space", [BOX32, BOX64, DICT], ids=["box32", "box64", "dict"])
def test_a_non_finite_value_never_enters_the_statistics(space, what: str, value: float) -> None:
    keys = ["a", "b"] if space is DICT else None
    venv = LeanVecNormalize(stream(space, 3), norm_obs_keys=keys)
    venv.reset()
    venv.step(np.zeros(3, int))
    before = venv.state_dict()
    venv.venv.envs[2].poison = {what: value}
    with pytest.raises(ValueError, match=r"non-finite .* environment index 2 of 3"):
        venv.step(np.zeros(3, int))
    after = venv.state_dict()
    assert str(before) == str(after)


def test_huge_but_finite_values_pass() -> None:
    venv = LeanVecNormalize(stream(BOX32, 2))
    venv.reset()
    venv.venv.envs[0].poison = {"obs": 1e30}  # its square overflows in single precision
    venv.step(np.zeros(2, int))
    assert np.isfinite(venv.obs_rms.var).all()
    # Where even double precision overflows, it is refused.
    venv = LeanVecNormalize(stream(BOX64, 2))
    venv.reset()
    venv.venv.envs[1].poison = {"obs": 1e200}
    with pytest.raises(ValueError, match="environment index 1 of 2"):
        venv.step(np.zeros(2, int))


def test_a_snapshot_stays_one() -> None:
    venv, _ = pair(BOX32, 1)
    venv.reset()
    mean, var = venv.obs_rms.mean, venv.obs_rms.var
    kept = mean.copy(), var.copy()
    venv.step(np.zeros(1, int))
    np.testing.assert_array_equal(mean, kept[0])
    np.testing.assert_array_equal(var, kept[1])


@pytest.mark.parametrize("space", [BOX32, DICT], ids=["box", "dict"])
def test_state_round_trip(space) -> None:
    keys = ["a"] if space is DICT else None
    settings = {"clip_obs": 3.0, "clip_reward": 2.0, "gamma": 0.9, "norm_obs_keys": keys}
    one, _ = pair(space, 2, **settings)
    one.reset()
    for _ in range(8):
        one.step(np.zeros(2, int))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["ret_rms"]["mean"].dtype == torch.float64

    other = normalizer_from_state(stream(space, 2), state)
    assert isinstance(other, VecNormalize)
    assert isinstance(other, LeanVecNormalize)
    assert str(other.state_dict()) == str(one.state_dict())
    plain = VecNormalize(stream(space, 2), norm_obs_keys=keys)
    load_normalization_state(plain, state)
    assert str(normalization_state(plain)) == str(one.state_dict())
    # What follows is the same bit for bit, and the state is not tied to what it was loaded into.
    other.venv = one.venv
    obs = one.get_original_obs()
    frozen = str(state)
    for venv in (one, other):
        venv.venv.seed(9)
        venv.reset()
    one.training = other.training = True
    assert_same(one.normalize_obs(obs), other.normalize_obs(obs), 0)
    other.step(np.zeros(2, int))
    assert str(state) == frozen


def test_state_with_another_number_of_environments() -> None:
    one, _ = pair(BOX32, 3)
    one.reset()
    one.step(np.zeros(3, int))
    other = normalizer_from_state(stream(BOX32, 1), one.state_dict())
    np.testing.assert_array_equal(other.returns, [0.0])
    np.testing.assert_array_equal(other.obs_rms.mean, one.obs_rms.mean)


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    small, _ = pair(BOX32, 1)
    large, _ = pair(BOX64, 1)
    no_obs, _ = pair(BOX32, 1, norm_obs=False)
    large.reset()
    before = str(small.state_dict())
    with pytest.raises(ValueError, match=r"\(2, 2\), the normaliser \(3,\)"):
        small.load_state_dict(large.state_dict())
    with pytest.raises(ValueError, match="normalises observations"):
        small.load_state_dict(no_obs.state_dict())
    with pytest.raises(ValueError, match=r"'gamma'.* missing"):
        small.load_state_dict(
            {key: value for key, value in large.state_dict().items() if key != "gamma"}
        )
    assert str(small.state_dict()) == before
    with pytest.raises(ValueError, match="normalised already"):
        normalizer_from_state(small, small.state_dict())


def test_statistics_of_an_inner_normaliser_are_not_ours() -> None:
    inner = LeanVecNormalize(stream(BOX32, 1), norm_reward=False)
    outer = LeanVecNormalize(inner, norm_obs=False)
    assert normalization_state(outer)["obs_rms"] == {}


def test_pickle_save_and_load(tmp_path) -> None:
    venv, _ = pair(BOX32, 2)
    venv.reset()
    for _ in range(3):
        venv.step(np.zeros(2, int))
    again = pickle.loads(pickle.dumps(venv))
    again.set_venv(stream(BOX32, 2))
    path = str(tmp_path / "normalizer.pkl")
    venv.save(path)
    loaded = LeanVecNormalize.load(path, stream(BOX32, 2))
    for one in (again, loaded):
        assert isinstance(one, LeanVecNormalize)
        np.testing.assert_array_equal(one.obs_rms.mean, venv.obs_rms.mean)
        one.reset()
        one.step(np.zeros(2, int))


@pytest.mark.parametrize("lean_first", [True, False])
def test_sync_envs_normalization(lean_first: bool) -> None:
    ours, theirs = pair(BOX32, 2)
    source, target = (ours, theirs) if lean_first else (theirs, ours)
    source.reset(), target.reset()
    for _ in range(5):
        source.step(np.zeros(2, int))
    sync_envs_normalization(source, target)
    obs = source.get_original_obs()
    np.testing.assert_array_equal(target.normalize_obs(obs), source.normalize_obs(obs))
    source.step(np.zeros(2, int))
    assert not np.array_equal(target.obs_rms.mean, source.obs_rms.mean)
    target.step(np.zeros(2, int))  # with the statistics class of the other kind
