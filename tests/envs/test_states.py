"""Environments go on from their state as if they had not been left."""

import copy
import functools
import io

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from envs import LeanVecEnv, MetricBandit, MetricBanditVecEnv, make, states
from npg import checkpoints

CLASSIC = ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0"]
TEXT = ["FrozenLake-v1", "CliffWalking-v1", "Blackjack-v1", "Taxi-v4"]
MUJOCO = ["Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "Pusher-v5", "Reacher-v5"]
MUJOCO += ["HumanoidStandup-v5", "Swimmer-v5", "Walker2d-v5"]
MUJOCO += ["InvertedPendulum-v5", "InvertedDoublePendulum-v5"]
INPUTS, LABELS = np.arange(40.0).reshape(20, 2), np.arange(20) % 3


def through_a_file(state):
    file = io.BytesIO()
    checkpoints.write(file, {"state": state})
    file.seek(0)
    return checkpoints.read(file)["state"]


def in_bytes(value):
    """Every bit of it: printed numbers are rounded."""
    if isinstance(value, dict):
        return {key: in_bytes(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [in_bytes(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.str, value.shape, value.tobytes()
    return value.hex() if isinstance(value, float) else value


def steps(env, actions):
    """All that comes out of an environment, but the clock."""
    out = []
    for action in actions:
        obs, rewards, dones, infos = env.step(action)
        for info in infos:
            info.get("episode", {}).pop("t", None)
        out.append(in_bytes([obs, rewards, dones, infos]))
    return out


def actions_of(env, number):
    env.action_space.seed(0)
    return [
        np.array([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(number)
    ]


def gymnasium_of(env_id, seed=1, **arguments):
    return make(env_id, num_envs=2, seed=seed, backend="gymnasium", **arguments)


def goes_on(made, before=70):
    """Whether two new vectors, and the old one in the middle of something else, go on as it did."""
    env = made(1)
    env.reset()
    actions = actions_of(env, before + 130)
    steps(env, actions[:before])
    taken = through_a_file(states.take(env))
    expected = steps(env, actions[before:])
    other = made(7)
    other.seed(5)  # what waits for the next reset
    states.give(other, taken)
    assert steps(other, actions[before:]) == expected
    states.give(env, taken)
    assert steps(env, actions[before:]) == expected


@pytest.mark.parametrize("env_id", CLASSIC + TEXT + MUJOCO)
@pytest.mark.parametrize("before", [0, 70])
def test_goes_on_bit_for_bit(env_id, before):
    if env_id in MUJOCO:
        pytest.importorskip("mujoco")
    goes_on(functools.partial(gymnasium_of, env_id), before)


def wrapped(wrap, seed):
    env = LeanVecEnv([lambda: wrap(gym.make("Pendulum-v1", max_episode_steps=20)) for _ in "ab"])
    env.seed(seed)
    return env


def stacked(seed):
    return VecFrameStack(gymnasium_of("CartPole-v1", seed), n_stack=3)


def bandits(seed):
    env = LeanVecEnv([lambda: MetricBandit(INPUTS, LABELS) for _ in "ab"])
    env.seed(seed)
    return env


@pytest.mark.parametrize(
    "made",
    [
        bandits,
        lambda seed: MetricBanditVecEnv(INPUTS, LABELS, num_envs=3, seed=seed),
        lambda seed: gymnasium_of("npg/LQR-v0", seed, noise_std=0.1, horizon=30),
        functools.partial(gymnasium_of, "Taxi-v4", fickle_passenger=True, fickle_probability=1.0),
        stacked,
        lambda seed: VecMonitor(gymnasium_of("CartPole-v1", seed)),
        functools.partial(wrapped, Monitor),
        functools.partial(wrapped, lambda env: wrappers.RescaleAction(env, -1, np.float32(1))),
        functools.partial(wrapped, wrappers.RecordEpisodeStatistics),
    ],
    ids=[
        "bandits",
        "vector",
        "lqr",
        "fickle",
        "frames",
        "vec-monitor",
        "monitor",
        "rescaled",
        "counted",
    ],
)
def test_so_do_this_librarys_own_and_wrappers(made):
    goes_on(made)


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_generators_of_every_kind_go_on(kind):
    env, other = gymnasium_of("CartPole-v1"), gymnasium_of("CartPole-v1", seed=9)
    env.reset()
    for single in env.envs:
        single.unwrapped.np_random = np.random.Generator(getattr(np.random, kind)(3))
        single.unwrapped.np_random.random(5, dtype=np.float32)  # half of a word is left over
    actions = actions_of(env, 200)
    states.give(other, through_a_file(states.take(env)))
    assert steps(other, actions) == steps(env, actions)


def test_a_generator_that_others_hold_stays_the_same_object():
    env = gymnasium_of("CartPole-v1")
    env.reset()
    taken, held = states.take(env), env.envs[0].unwrapped.np_random
    expected = copy.deepcopy(held).random()
    held.random(7)
    states.give(env, taken)
    assert env.envs[0].unwrapped.np_random is held
    assert held.random() == expected


def test_episodes_in_progress_keep_their_return():
    env = make("CartPole-v1", num_envs=1, seed=0, backend="gymnasium")
    env.reset()
    env.step(np.array([0]))
    other = make("CartPole-v1", num_envs=1, seed=9, backend="gymnasium")
    states.give(other, states.take(env))
    length, ended = 1, False  # one step was taken before
    while not ended:
        *_, (ended,), infos = other.step(np.array([0]))
        length += 1
    assert infos[0]["episode"]["r"] == infos[0]["episode"]["l"] == length > 5


# ------------------------------------------------------------------------------ what is not known


class Counter(gym.Env):
    """Known to nobody; what it counts is in no attribute that is data."""

    observation_space = gym.spaces.Box(0, 100, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self):
        self.count = iter(range(100))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.array([next(self.count)], np.float32), 0.0, False, False, {}


class Remembering(VecEnvWrapper):
    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        return self.venv.step_wait()


class Own(LeanVecEnv):
    """A subclass may remember something."""


def cartpoles(wrap=lambda env: env):
    return LeanVecEnv([lambda: wrap(gym.make("CartPole-v1"))])


def adding(env):
    return wrappers.TransformObservation(env, lambda obs: obs + 1, env.observation_space)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (lambda: LeanVecEnv([Counter]), "test_states.Counter"),
        (lambda: cartpoles(adding), "transform_observation.TransformObservation"),
        (lambda: cartpoles(wrappers.TimeAwareObservation), "TimeAwareObservation"),
        (lambda: Remembering(cartpoles()), "test_states.Remembering"),
        (lambda: Own([lambda: gym.make("CartPole-v1")]), "test_states.Own"),
    ],
)
def test_what_is_not_known_is_named(made, name):
    env = made()
    env.reset()
    said = rf"{name} consists of is not known \(envs\.states\.register"
    with pytest.raises(states.NoState, match=said):
        states.take(env)


def test_one_normaliser_is_saved_beside_and_a_second_one_is_refused():
    env = VecNormalize(cartpoles())
    env.reset()
    states.give(env, states.take(env))
    with pytest.raises(states.NoState, match="two normalisers"):
        states.take(VecNormalize(env))


def test_envpool_keeps_its_state_to_itself():
    pytest.importorskip("envpool")
    with pytest.raises(states.NoState, match="EnvPool has no way to ask for the state"):
        states.take(make("CartPole-v1", num_envs=2, backend="envpool"))


def test_environments_are_made_known(monkeypatch):
    monkeypatch.setattr(states, "_registered", {})

    def give(env, state):
        env.count = iter(range(state["next"], 100))

    states.register(Counter, lambda env: {"next": env.count.__reduce__()[2]}, give)
    env = LeanVecEnv([Counter])
    env.reset()
    for _ in range(3):
        env.step(np.array([0]))
    other = LeanVecEnv([Counter])
    states.give(other, through_a_file(states.take(env)))
    assert other.step(np.array([0]))[0].item() == 3


def test_what_an_environment_raises_is_a_reason(monkeypatch):
    monkeypatch.setattr(states, "_registered", {})

    def bad(*_):
        raise ZeroDivisionError("its own")

    env = LeanVecEnv([Counter])
    env.reset()
    states.register(Counter, bad, bad)
    with pytest.raises(states.NoState, match=r"ZeroDivisionError.'its own'"):
        states.take(env)
    states.register(Counter, lambda env: {}, bad)
    with pytest.raises(states.NoState, match=r"ZeroDivisionError.'its own'"):
        states.give(env, states.take(env))


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
