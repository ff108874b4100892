"""What `load` and `set_env` put around environments: the stored normaliser, and no second."""

import copy
import pathlib

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

from agents import TRPO
from envs import LeanVecNormalize
from tests.agents.checkpoints import box_env, some_observations
from tests.agents.helpers import BOX, DICTIONARY, Toy, small, vector_env


def normalised(model) -> VecNormalize:
    env = model.get_vec_normalize_env()
    assert env is not None
    return env


def normalisers(env) -> int:
    """Number of normalisers around an environment."""
    count = 0
    while hasattr(env, "venv"):
        count += isinstance(env, VecNormalize)
        env = env.venv
    return count


@pytest.fixture
def saved(tmp_path) -> tuple[TRPO, pathlib.Path]:
    model = small(TRPO, VecNormalize(box_env(), clip_obs=3.0, gamma=0.9)).learn(64 * 2)
    model.save(tmp_path / "model")
    return model, tmp_path / "model.zip"


def test_raw_environments_get_the_stored_normaliser(saved) -> None:
    model, path = saved
    loaded = TRPO.load(path, env=box_env())
    ours, theirs = normalised(loaded), normalised(model)
    assert normalisers(loaded.env) == 1
    assert isinstance(ours, LeanVecNormalize)
    np.testing.assert_array_equal(ours.obs_rms.mean, theirs.obs_rms.mean)
    np.testing.assert_array_equal(ours.obs_rms.var, theirs.obs_rms.var)
    np.testing.assert_array_equal(ours.ret_rms.var, theirs.ret_rms.var)
    assert (ours.obs_rms.count, ours.clip_obs, ours.gamma) == (theirs.obs_rms.count, 3.0, 0.9)
    assert ours.training
    raw = some_observations()
    np.testing.assert_allclose(ours.normalize_obs(raw), theirs.normalize_obs(raw), atol=1e-6)
    loaded.learn(64, reset_num_timesteps=False)
    assert ours.obs_rms.count > theirs.obs_rms.count  # it is the one that trains


@pytest.mark.parametrize("wrapper", [VecNormalize, LeanVecNormalize])
def test_a_fresh_normaliser_takes_the_stored_statistics_and_no_second_one(saved, wrapper) -> None:
    model, path = saved
    env = wrapper(box_env())
    loaded = TRPO.load(path, env=env)
    assert normalised(loaded) is env
    assert normalisers(loaded.env) == 1
    np.testing.assert_array_equal(env.obs_rms.mean, normalised(model).obs_rms.mean)
    np.testing.assert_array_equal(env.ret_rms.var, normalised(model).ret_rms.var)


def test_a_fresh_normaliser_keeps_the_flags_that_its_user_set(saved) -> None:
    _, path = saved
    env = VecNormalize(box_env(), training=False, norm_reward=False)
    TRPO.load(path, env=env)
    assert (env.training, env.norm_reward) == (False, False)


def test_a_normaliser_with_data_is_left_alone(saved) -> None:
    _, path = saved
    env = VecNormalize(box_env())
    env.reset()
    for _ in range(5):
        env.step(np.ones((1, 2), np.float32))
    before = copy.deepcopy(env.obs_rms)
    loaded = TRPO.load(path, env=env)
    assert normalised(loaded) is env
    assert normalisers(loaded.env) == 1
    np.testing.assert_array_equal(env.obs_rms.mean, before.mean)
    assert env.obs_rms.count == before.count


def test_a_normaliser_of_another_kind_is_left_alone(saved) -> None:
    _, path = saved
    env = VecNormalize(box_env(), norm_obs=False)
    loaded = TRPO.load(path, env=env)
    assert normalised(loaded) is env
    assert not env.norm_obs


def test_statistics_survive_a_load_without_environment(saved, tmp_path) -> None:
    model, path = saved
    predictor = TRPO.load(path)
    raw = some_observations()
    seen = normalised(model).normalize_obs(raw)  # predict() takes what the environment gives
    np.testing.assert_array_equal(
        predictor.predict(seen, deterministic=True)[0], model.predict(seen, deterministic=True)[0]
    )
    predictor.save(tmp_path / "again")
    again = TRPO.load(tmp_path / "again", env=box_env())
    np.testing.assert_array_equal(normalised(again).obs_rms.mean, normalised(model).obs_rms.mean)


def test_no_normaliser_where_none_was(tmp_path) -> None:
    small(TRPO, box_env()).save(tmp_path / "model")
    assert TRPO.load(tmp_path / "model", env=box_env()).get_vec_normalize_env() is None


def test_dictionary_observations_keep_their_normaliser(tmp_path) -> None:
    def env():
        return vector_env(lambda: Toy(DICTIONARY, BOX))

    wrapped = VecNormalize(env(), norm_obs_keys=["angle"])
    model = small(TRPO, wrapped, "MultiInputPolicy").learn(64)
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=env())
    assert normalised(loaded).norm_obs_keys == ["angle"]
    np.testing.assert_array_equal(
        normalised(loaded).obs_rms["angle"].mean, wrapped.obs_rms["angle"].mean
    )


def test_reward_normaliser_alone(tmp_path) -> None:
    model = small(TRPO, VecNormalize(box_env(), norm_obs=False)).learn(64)
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=box_env())
    assert not normalised(loaded).norm_obs
    assert normalised(loaded).ret_rms.var == normalised(model).ret_rms.var


# -------------------------------------------------------------------------------------- set_env


def test_set_env_keeps_the_statistics_of_now(tmp_path) -> None:
    model = small(TRPO, LeanVecNormalize(box_env()))
    model.learn(64)
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=box_env())
    loaded.learn(64, reset_num_timesteps=False)
    count = float(loaded.get_vec_normalize_env().obs_rms.count)
    loaded.set_env(box_env())
    assert float(loaded.get_vec_normalize_env().obs_rms.count) == count


def test_set_env_goes_on_with_the_new_environment() -> None:
    model = small(TRPO, box_env())
    model.learn(64)
    env = box_env()
    model.set_env(env)
    assert model.get_env() is env
    assert model._last_obs is None
    model.learn(64, reset_num_timesteps=False)
    assert env.envs[0].total == 64
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(box_env(2))
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(vector_env(Toy))


def test_set_env_after_load_applies_the_stored_normaliser(saved) -> None:
    model, path = saved
    loaded = TRPO.load(path)
    loaded.set_env(box_env())
    assert unwrap_vec_normalize(loaded.env) is not None
    np.testing.assert_array_equal(normalised(loaded).obs_rms.mean, normalised(model).obs_rms.mean)
    assert normalisers(loaded.env) == 1
