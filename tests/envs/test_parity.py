"""EnvPool simulates what gymnasium simulates, for each id that `backend="auto"` may exchange.

Gymnasium is put into the state that EnvPool shows, both take the same action, and the next
observation, the reward and the termination must agree: one step at a time, so that chaos cannot
blur a difference.
"""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest

from envs import EnvPoolVecEnv
from envs.parity import ENVPOOL_PAYS_FROM

envpool = pytest.importorskip("envpool")

StateSetter = Callable[[gym.Env, np.ndarray], None]


def set_classic(env: gym.Env, obs: np.ndarray) -> None:
    env.state = obs.astype(np.float64)
    env.steps_beyond_terminated = None


def set_pendulum(env: gym.Env, obs: np.ndarray) -> None:
    env.state = np.array([np.arctan2(obs[1], obs[0]), obs[2]])


def set_acrobot(env: gym.Env, obs: np.ndarray) -> None:
    env.state = np.array([np.arctan2(obs[1], obs[0]), np.arctan2(obs[3], obs[2]), obs[4], obs[5]])


def set_mujoco(hidden: int) -> StateSetter:
    """Observations are positions and velocities without the first `hidden` coordinates.

    Nothing depends on these: the ground is the same everywhere.
    """

    def setter(env: gym.Env, obs: np.ndarray) -> None:
        positions = np.concatenate([np.zeros(hidden), obs[: env.model.nq - hidden]])
        env.set_state(positions, obs[env.model.nq - hidden :])

    return setter


def set_double_pendulum(env: gym.Env, obs: np.ndarray) -> None:
    angles = np.arctan2(obs[1:3], obs[3:5])
    env.set_state(np.concatenate([obs[:1], angles]), obs[5:8])


# Per id: how to set the state, and the largest error of an observation and of a reward. EnvPool
# keeps the classic states in float64 and shows float32; its rewards are float32 everywhere.
# MuJoCo agrees to 1e-12, but where contacts make its solver start from another guess, to 1e-7.
CASES: dict[str, tuple[StateSetter, float, float]] = {
    "Acrobot-v1": (set_acrobot, 1e-5, 0.0),
    "CartPole-v1": (set_classic, 1e-6, 0.0),
    "MountainCar-v0": (set_classic, 1e-6, 0.0),
    "MountainCarContinuous-v0": (set_classic, 1e-6, 1e-5),
    "Pendulum-v1": (set_pendulum, 1e-5, 1e-5),
    "HalfCheetah-v5": (set_mujoco(1), 1e-5, 1e-5),
    "Hopper-v5": (set_mujoco(1), 1e-5, 1e-5),
    "InvertedDoublePendulum-v5": (set_double_pendulum, 1e-5, 1e-5),
    "InvertedPendulum-v5": (set_mujoco(0), 1e-5, 1e-5),
    "Swimmer-v5": (set_mujoco(2), 1e-5, 1e-5),
    "Walker2d-v5": (set_mujoco(1), 1e-5, 1e-5),
}
NEVER_TERMINATES = {"Pendulum-v1", "HalfCheetah-v5", "Swimmer-v5"}


def make_gymnasium(env_id: str) -> gym.Env:
    if env_id.endswith("-v5"):
        pytest.importorskip("mujoco")
    return gym.make(env_id, disable_env_checker=True)


def choose(env_id: str, obs: np.ndarray, step: int, space: gym.Space, rng) -> np.ndarray:
    """Act at random, or drive along the velocity where only that ever ends an episode."""
    if env_id == "MountainCar-v0":
        return np.where(obs[:, 1] < 0, 0, 2)
    if env_id == "MountainCarContinuous-v0":
        return np.where(obs[:, 1:] < 0, -1, 1).astype(np.float32)
    if env_id == "Acrobot-v1":
        return np.where(obs[:, 5] < 0, 0, 2)
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(0, space.n, len(obs))
    # Weak and strong actions in turn, for velocities inside the range that observations show.
    scale = 0.3 if step % 2 else 1.0
    return scale * rng.uniform(space.low, space.high, (len(obs), *space.shape)).astype(np.float32)


def test_every_parity_id_has_a_case() -> None:
    assert set(CASES) == set(ENVPOOL_PAYS_FROM)


@pytest.mark.parametrize("env_id", sorted(CASES))
def test_same_spaces_and_time_limit(env_id: str) -> None:
    env = make_gymnasium(env_id)
    venv = EnvPoolVecEnv(env_id)
    assert venv.observation_space == env.observation_space
    assert venv.action_space == env.action_space
    assert venv.get_attr("spec")[0].max_episode_steps == env.spec.max_episode_steps
    assert venv.reset().dtype == env.observation_space.dtype


@pytest.mark.parametrize("env_id", sorted(CASES))
def test_same_dynamics_rewards_and_terminations(env_id: str) -> None:
    set_state, obs_tolerance, reward_tolerance = CASES[env_id]
    env = make_gymnasium(env_id)
    env.reset(seed=0)
    env = env.unwrapped
    num_envs, rng = 4, np.random.default_rng(0)
    venv = EnvPoolVecEnv(env_id, num_envs, seed=1)
    obs = venv.reset()
    compared = ended = 0
    for step in range(200):
        actions = choose(env_id, obs, step, venv.action_space, rng)
        before = obs
        obs, rewards, dones, infos = venv.step(actions)
        for index in range(num_envs):
            if env_id in ("Hopper-v5", "Walker2d-v5") and np.abs(before[index]).max() >= 10:
                continue  # these clip the velocities that they show
            set_state(env, before[index])
            want, reward, terminated, _, _ = env.step(actions[index])
            info = infos[index]
            got = info["terminal_observation"] if dones[index] else obs[index]
            np.testing.assert_allclose(got, want, rtol=0, atol=obs_tolerance)
            assert rewards[index] == pytest.approx(float(reward), abs=reward_tolerance, rel=1e-6)
            assert terminated == (dones[index] and not info["TimeLimit.truncated"])
            compared, ended = compared + 1, ended + bool(terminated)
    assert compared >= 200
    assert (ended == 0) == (env_id in NEVER_TERMINATES)


@pytest.mark.parametrize("env_id", sorted(CASES))
def test_same_initial_states(env_id: str) -> None:
    samples = 400
    env = make_gymnasium(env_id)
    env.reset(seed=0)
    theirs = np.array([env.reset()[0] for _ in range(samples)])
    ours = EnvPoolVecEnv(env_id, samples, seed=0).reset()
    # Two-sample tests of mean and spread, at 5 standard errors: about 1e-6 per coordinate, and
    # a uniform or normal coordinate's standard deviation is known to 1/sqrt(2n) or better.
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / samples)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) <= 5 * error + 1e-9).all()
    moving = theirs.std(axis=0) > 1e-9
    assert (moving == (ours.std(axis=0) > 1e-9)).all()
    ratio = ours.std(axis=0)[moving] / theirs.std(axis=0)[moving]
    assert (np.abs(np.log(ratio)) <= 5 / np.sqrt(samples)).all()
