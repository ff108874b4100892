"""States of other environments, and damaged ones, are refused; none is ever half given back."""

import functools

import numpy as np
import pytest
from gymnasium import wrappers
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor

from envs import MetricBanditVecEnv, make, states
from tests.envs.helpers import (
    INPUTS,
    LABELS,
    MUJOCO,
    actions_of,
    gymnasium_of,
    in_bytes,
    stacked,
    steps,
    through_a_file,
    wrapped,
)

# ------------------------------------------------------------------------- settings are not state


@pytest.mark.parametrize(
    ("env_id", "arguments", "said"),
    [
        ("Pendulum-v1", {"g": 5.0}, r"PendulumEnv was made with other arguments: .*\bg differ"),
        ("CartPole-v1", {"max_episode_steps": 9}, "TimeLimit was made with other.*_max_episode"),
        ("FrozenLake-v1", {"is_slippery": False}, "FrozenLakeEnv was made with other arguments: P"),
        ("FrozenLake-v1", {"map_name": "8x8"}, "FrozenLakeEnv was made with other arguments: P"),
        ("HalfCheetah-v5", {"ctrl_cost_weight": 0.2}, "HalfCheetahEnv was.*_ctrl_cost_weight"),
        ("npg/LQR-v0", {"noise_std": 0.5}, "Regulator was made with other.*noise_std"),
    ],
)
def test_environments_made_with_other_arguments_are_refused(env_id, arguments, said):
    if env_id in MUJOCO:
        pytest.importorskip("mujoco")
    env, other = gymnasium_of(env_id), gymnasium_of(env_id, **arguments)
    env.reset()
    with pytest.raises(states.NoState, match=said):
        states.give(other, states.take(env))


def test_settings_that_were_changed_later_count_too():
    pytest.importorskip("mujoco")
    env, other = gymnasium_of("Hopper-v5"), gymnasium_of("Hopper-v5")
    env.reset()
    taken = states.take(env)
    states.give(other, taken)
    other.envs[1].unwrapped.model.opt.gravity[2] = -1.62
    with pytest.raises(states.NoState, match="HopperEnv was made with other arguments: model diff"):
        states.give(other, taken)


def test_rewards_cut_elsewhere_are_other_arguments():
    env, other = (
        wrapped(lambda env, low=low: wrappers.ClipReward(env, low, 1.0), 0) for low in (-1.0, -2.0)
    )
    env.reset()
    with pytest.raises(states.NoState, match="ClipReward was made with other arguments"):
        states.give(other, states.take(env))


def test_how_it_is_drawn_stays_as_it_is():
    pytest.importorskip("mujoco")
    drawn = {"render_mode": "rgb_array", "width": 64, "height": 48}
    for env_id, arguments in {"CartPole-v1": {"render_mode": "rgb_array"}, "Ant-v5": drawn}.items():
        env, other = gymnasium_of(env_id), gymnasium_of(env_id, **arguments)
        env.reset()
        actions = actions_of(env, 40)
        states.give(other, through_a_file(states.take(env)))
        assert other.envs[0].unwrapped.render_mode == "rgb_array"
        assert getattr(other.envs[0].unwrapped, "width", 64) == 64
        assert steps(env, actions) == steps(other, actions)


# ------------------------------------------------------------------ nothing is ever half given back


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: make("CartPole-v1", num_envs=3, backend="gymnasium"), "of 2 environments, not 3"),
        (lambda: gymnasium_of("Acrobot-v1"), "CartPoleEnv in other"),
        (lambda: VecMonitor(gymnasium_of("CartPole-v1")), "of none in other wrappers"),
        (lambda: MetricBanditVecEnv(INPUTS, LABELS, num_envs=2), "of none in other wrappers"),
    ],
)
def test_states_of_other_environments_are_refused(other, said):
    env = gymnasium_of("CartPole-v1")
    env.reset()
    with pytest.raises(states.NoState, match=said):
        states.give(other(), states.take(env))


def put(path, value):
    """Changes one entry of a state."""

    def change(state):
        for name in path[:-1]:
            state = state[name]
        state[path[-1]] = value

    return change


LAST = ("environments", 1, -1, "state")
GENERATOR = (*LAST, "_np_random")


@pytest.mark.parametrize(
    "change",
    [
        put((*GENERATOR, "bit_generator"), "default_rng"),
        put((*GENERATOR, "bit_generator"), "MT19937"),
        put((*GENERATOR, "has_uint32"), 7),
        put((*GENERATOR, "uinteger"), -1),
        put((*GENERATOR, "state"), {"state": 2**128, "inc": 1}),
        put((*GENERATOR, "state"), {"state": "1", "inc": 1}),
        put((*GENERATOR, "state"), {}),
        put(GENERATOR, np.zeros(3)),
        put((*LAST, "step"), 1),
        put((*LAST, "gravity"), 1.0),
        put((*LAST, "state"), len),
        put((*LAST, "_np_random_seed"), {"bit_generator": "PCG64"}),
        put(LAST, None),
        put((*LAST[:-1], "settings"), {}),
        put((*LAST[:-1], "class"), 3),
        put(("episodes", "returns"), [0.0]),
        put(("episodes", "returns"), ["0", "0"]),
        put(("episodes", "lengths"), [0, -1]),
        put(("episodes", "observations"), []),
        put(("episodes", "observations"), [np.zeros((2, 3))]),
        put(("environments",), None),
        put(("vectors",), [{}]),
        dict.clear,
    ],
)
def test_a_damaged_state_is_refused_and_nothing_is_changed(change):
    refuses(functools.partial(gymnasium_of, "CartPole-v1"), change)


def refuses(made, change):
    """Whether a changed state is refused, and the environment left where it was."""
    env, other = made(1), made(9)
    env.reset()
    other.reset()
    taken, before = states.take(env), through_a_file(states.take(other))
    change(taken)
    with pytest.raises(states.NoState):
        states.give(other, taken)
    assert in_bytes(states.take(other)) == in_bytes(before)


@pytest.mark.parametrize(
    "change",
    [
        put((*LAST, "data"), {}),
        put((*LAST, "data"), None),
        put((*LAST, "data", "qpos"), np.zeros(99)),
        put((*LAST, "data", "qpos"), np.zeros(6, np.float32)),
        put((*LAST, "data", "time"), "now"),
        put((*LAST, "data", "moment_colind"), np.full(3, 10**9, np.int32)),
    ],
)
def test_so_is_a_damaged_simulation(change):
    pytest.importorskip("mujoco")
    refuses(functools.partial(gymnasium_of, "Hopper-v5"), change)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        (np.random.MT19937, ("state", "pos"), 10**9),  # NumPy would read 4 GB beyond its array
        (np.random.MT19937, ("state", "pos"), -5),
        (np.random.MT19937, ("state", "key"), np.zeros(2, np.uint32)),
        (np.random.Philox, ("buffer_pos",), 10**6),
        (np.random.Philox, ("buffer",), np.zeros(4)),
        (np.random.Philox, ("state", "counter"), np.zeros(3, np.uint64)),
        (np.random.SFC64, ("state", "state"), [1, 2, 3, 4]),
        (np.random.PCG64DXSM, ("state", "inc"), -1),
    ],
)
def test_numbers_that_numpy_would_believe_are_refused(kind, path, value):
    env = gymnasium_of("CartPole-v1")
    env.reset()
    taken = states.take(env)
    taken["environments"][0][-1]["state"]["_np_random"] = saved = kind(0).state
    states.give(env, taken)
    put(path, value)(saved)
    with pytest.raises(states.NoState, match=rf"_np_random.*{path[-1]} cannot be"):
        states.give(env, taken)


@pytest.mark.parametrize(
    "change",
    [
        put(("vectors", 0, "state", "left"), np.array([99])),
        put(("vectors", 0, "state", "left"), np.array([0.5])),
        put(("vectors", 0, "state", "shown"), np.array([1])),
        put(("vectors", 0, "state", "shown"), np.array([-1, 1, 2])),
        put(("vectors", 0, "state", "data"), "other"),
        put(("vectors", 0, "state", "generator", "has_uint32"), 2),
    ],
)
def test_so_is_a_damaged_order_of_the_data(change):
    refuses(lambda seed: MetricBanditVecEnv(INPUTS, LABELS, num_envs=3, seed=seed), change)


def test_frames_of_other_environments_are_refused():
    env, other = stacked(0), VecFrameStack(gymnasium_of("CartPole-v1"), n_stack=2)
    env.reset()
    with pytest.raises(states.NoState, match="of other observations"):
        states.give(other, states.take(env))
