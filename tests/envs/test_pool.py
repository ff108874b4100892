"""`EnvPoolVecEnv` against EnvPool driven by hand."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor

from envs import EnvPoolVecEnv

envpool = pytest.importorskip("envpool")


def by_hand(env_id: str, num_envs: int, seed: int, actions: np.ndarray):
    """Drive each environment alone, in a pool of one, resetting at the end of an episode."""
    columns = []
    for index in range(num_envs):
        pool = envpool.make_gymnasium(env_id, num_envs=1, env_seed=[seed + index])
        obs, _ = pool.reset()
        rows = [(obs[0], None, None, None, None)]
        for action in actions[:, index]:
            obs, reward, terminated, truncated, _ = pool.step(action[None])
            last = obs[0]
            if terminated[0] or truncated[0]:
                obs, _ = pool.reset()
            rows.append((obs[0], reward[0], terminated[0], truncated[0], last))
        columns.append(rows)
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize(("env_id", "num_steps"), [("CartPole-v1", 150), ("Pendulum-v1", 410)])
def test_no_step_is_lost_or_added(env_id: str, num_steps: int) -> None:
    num_envs, seed = 5, 7
    venv = EnvPoolVecEnv(env_id, num_envs, seed)
    venv.action_space.seed(0)
    actions = np.array(
        [[venv.action_space.sample() for _ in range(num_envs)] for _ in range(num_steps)]
    )
    first, *rows = by_hand(env_id, num_envs, seed, actions)
    np.testing.assert_array_equal(venv.reset(), [row[0] for row in first])
    lengths, returns, episodes, kept = np.zeros(num_envs), np.zeros(num_envs), 0, []
    for action, row in zip(actions, rows, strict=True):
        obs, rewards, dones, infos = venv.step(action)
        kept.append((obs, obs.copy()))
        assert rewards.dtype == np.float32
        assert dones.dtype == bool
        np.testing.assert_array_equal(obs, [one[0] for one in row])
        np.testing.assert_array_equal(rewards, [one[1] for one in row])
        np.testing.assert_array_equal(dones, [one[2] or one[3] for one in row])
        lengths, returns = lengths + 1, returns + rewards
        for index, info in enumerate(infos):
            if not dones[index]:
                assert info == {}
                continue
            episodes += 1
            np.testing.assert_array_equal(info["terminal_observation"], row[index][4])
            assert info["TimeLimit.truncated"] is bool(row[index][3] and not row[index][2])
            assert info["episode"]["l"] == lengths[index]
            assert info["episode"]["r"] == pytest.approx(returns[index], abs=1e-6)
            lengths[index] = returns[index] = 0
    assert episodes >= 2 * num_envs
    assert len({id(info) for info in infos}) == num_envs
    for obs, copy in kept:  # arrays that were handed out stay as they were
        np.testing.assert_array_equal(obs, copy)


def test_time_limit_is_a_truncation() -> None:
    venv = EnvPoolVecEnv("Pendulum-v1", 3, seed=0)
    venv.reset()
    ends = []
    for step in range(1, 401):
        _, _, dones, infos = venv.step(np.zeros((3, 1), np.float32))
        ends += [(step, info["TimeLimit.truncated"]) for info in infos if "episode" in info]
        assert dones.all() == (step % 200 == 0)
    assert ends == [(200, True)] * 3 + [(400, True)] * 3


def test_dict_observations() -> None:
    if "FetchReach-v4" not in envpool.list_all_envs():
        pytest.skip("this EnvPool has no robotics")
    venv = EnvPoolVecEnv("FetchReach-v4", 2, seed=0)
    assert isinstance(venv.observation_space, spaces.Dict)
    obs = venv.reset()
    assert {key: value.shape for key, value in obs.items()} == {
        "observation": (2, 10),
        "achieved_goal": (2, 3),
        "desired_goal": (2, 3),
    }
    goal = obs["desired_goal"]
    for _ in range(50):
        obs, _, dones, infos = venv.step(np.zeros((2, 4), np.float32))
    assert dones.all()
    np.testing.assert_array_equal(infos[1]["terminal_observation"]["desired_goal"], goal[1])
    assert not np.array_equal(obs["desired_goal"], goal)


def test_seeds() -> None:
    venv = EnvPoolVecEnv("CartPole-v1", 3, seed=5)
    first, second = venv.reset(), venv.reset()
    assert not np.array_equal(first, second)
    assert venv.seed(5) == [5, 6, 7]
    np.testing.assert_array_equal(venv.reset(), first)
    np.testing.assert_array_equal(venv.reset(), second)
    # Environment i has seed + i.
    np.testing.assert_array_equal(EnvPoolVecEnv("CartPole-v1", 1, seed=7).reset()[0], first[2])
    np.random.seed(0)  # noqa: NPY002 - what Stable-Baselines3 draws from
    drawn = EnvPoolVecEnv("CartPole-v1", 2).reset()
    np.random.seed(0)  # noqa: NPY002 - what Stable-Baselines3 draws from
    np.testing.assert_array_equal(EnvPoolVecEnv("CartPole-v1", 2).reset(), drawn)
    assert max(venv.seed(2**31 - 2)) == 2**31 - 1


def test_threads_do_not_change_the_result() -> None:
    def run(num_threads: int) -> np.ndarray:
        venv = EnvPoolVecEnv("CartPole-v1", 6, seed=1, num_threads=num_threads)
        venv.reset()
        return np.array([venv.step(np.arange(6) % 2)[0] for _ in range(60)])

    np.testing.assert_array_equal(run(1), run(3))


def test_reset_in_the_middle_clears_the_accounts() -> None:
    venv = EnvPoolVecEnv("CartPole-v1", 2, seed=0)
    venv.reset()
    for _ in range(4):
        venv.step(np.array([0, 0]))
    venv.step_async(np.array([0, 0]))
    venv.reset()  # cancels the step under way
    lengths, step = [], 0
    while len(lengths) < 2:
        step += 1
        infos = venv.step(np.array([0, 0]))[3]
        lengths += [(info["episode"]["l"], step) for info in infos if "episode" in info]
    assert all(length == step for length, step in lengths)


def test_what_it_says_of_itself() -> None:
    venv = EnvPoolVecEnv("HalfCheetah-v5", 2, seed=0)
    assert venv.env_is_wrapped(Monitor) == [True, True]
    assert venv.env_is_wrapped(Monitor, indices=0) == [True]
    assert venv.get_attr("render_mode") == [None, None]
    assert venv.get_attr("spec", 1)[0].id == "HalfCheetah-v5"
    assert venv.get_attr("spec")[0].max_episode_steps == 1000
    assert venv.action_space.dtype == np.float32
    assert not venv.has_attr("unwrapped_model")
    for call in (
        lambda: venv.get_attr("unwrapped_model"),
        lambda: venv.set_attr("x", 1),
        lambda: venv.env_method("render"),
    ):
        with pytest.raises(AttributeError, match="use backend='gymnasium'"):
            call()
    with pytest.raises(ValueError, match="no reset options"):
        venv.set_options({"a": 1})
    venv.set_options({})


def test_bad_use() -> None:
    with pytest.raises(ValueError, match="EnvPool has no environment 'Nothing-v0'"):
        EnvPoolVecEnv("Nothing-v0")
    venv = EnvPoolVecEnv("CartPole-v1", 2)
    with pytest.raises(RuntimeError, match="reset"):
        venv.step(np.array([0, 0]))
    venv.reset()
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        venv.step(np.array([0, 0, 0]))
    venv.close()
    venv.close()
    with pytest.raises(RuntimeError, match="reset"):
        venv.step(np.array([0, 0]))
