"""Classification as a bandit: rewards beside scikit-learn's metrics, epochs, seeds, learning."""

import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium.utils.env_checker import check_env
from sklearn.metrics import accuracy_score, recall_score
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from agents import A2C, PPO, REINFORCE, TRPO
from envs import MetricBandit, MetricBanditVecEnv, make

METRICS = {"accuracy": accuracy_score, "balanced": lambda y, p: recall_score(y, p, average="macro")}


def data(samples: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes, of which 0 is frequent; the largest of three coordinates says which."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(samples, 4)).astype(np.float32)
    inputs[:, 0] += 0.8
    return inputs, inputs[:, :3].argmax(1)


def labels_of(observations: np.ndarray) -> np.ndarray:
    return observations[:, :3].argmax(1)


# -------------------------------------------------------------------------------------- contracts


def test_gymnasium_and_stable_baselines3_accept_it() -> None:
    check_env(MetricBandit(*data()), skip_render_check=True)
    check_env_of_sb3(MetricBandit(*data()))
    images = np.random.default_rng(0).normal(size=(20, 1, 8, 8))
    check_env(MetricBandit(images, np.arange(20) % 4), skip_render_check=True)


def test_one_step_is_an_episode() -> None:
    inputs, labels = data()
    env = MetricBandit(inputs, labels)
    observation, info = env.reset(seed=1)
    np.testing.assert_array_equal(observation, inputs[info["index"]])
    right = int(labels[info["index"]])
    same, reward, terminated, truncated, told = env.step(np.int64(right))
    np.testing.assert_array_equal(same, observation)
    assert (reward, terminated, truncated, told) == (1.0, True, False, {"label": right})


def test_the_vector_does_what_monitored_environments_do() -> None:
    """Beside envs.make of the single one: with one environment and one seed, the same steps."""
    inputs, labels = data()
    ours = MetricBanditVecEnv(inputs, labels, 1, "balanced", seed=5)
    theirs = make(lambda: MetricBandit(inputs, labels, "balanced"), num_envs=1, seed=5)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    for _ in range(100):
        actions = rng.integers(3, size=1)
        (obs, rewards, dones, infos), other = ours.step(actions), theirs.step(actions)
        np.testing.assert_array_equal(obs, other[0])
        np.testing.assert_array_equal(rewards, other[1])
        assert (obs.dtype, rewards.dtype, dones.dtype) == tuple(a.dtype for a in other[:3])
        assert dones.all()
        assert other[2].all()
        info, expected = infos[0], other[3][0]
        np.testing.assert_array_equal(
            info["terminal_observation"], expected["terminal_observation"]
        )
        assert info["TimeLimit.truncated"] == expected["TimeLimit.truncated"]
        for key in ("r", "l"):
            assert info["episode"][key] == expected["episode"][key]
    assert ours.env_is_wrapped(Monitor) == [True]
    assert ours.get_attr("render_mode") == [None]
    with pytest.raises(AttributeError, match=r"has no method 'close_door': use envs\.make"):
        ours.env_method("close_door")
    ours.close()


# ---------------------------------------------------------------------------------------- rewards


@pytest.mark.parametrize("reward", METRICS)
def test_the_mean_reward_is_the_metric(reward: str) -> None:
    """Over an epoch, of guesses that are right half of the time."""
    inputs, labels = data()
    env = MetricBanditVecEnv(inputs, labels, num_envs=20, reward=reward, seed=3)
    rng = np.random.default_rng(0)
    observations, guesses, truth, rewards = env.reset(), [], [], []
    for _ in range(3):  # of 20: all 60
        right = labels_of(observations)
        guess = np.where(rng.random(20) < 0.5, right, rng.integers(3, size=20))
        guesses.append(guess)
        truth.append(right)
        observations, given, _, _ = env.step(guess)
        rewards.append(given)
    expected = METRICS[reward](np.concatenate(truth), np.concatenate(guesses))
    assert np.mean(rewards) == pytest.approx(expected, rel=1e-6)


def test_a_class_that_never_occurs_has_no_weight() -> None:
    inputs, labels = data()
    labels = labels * 2  # 0, 2, 4: five actions
    env = MetricBanditVecEnv(inputs, labels, num_envs=60, reward="balanced", seed=0)
    observations = env.reset()
    assert env.action_space.n == 5
    assert np.mean(env.step(2 * labels_of(observations))[1]) == pytest.approx(1, rel=1e-6)


def test_a_reward_of_ones_own() -> None:
    """Costs of confusions; asked once for each pair."""
    costs = np.random.default_rng(1).normal(size=(3, 3))
    asked = []

    def reward(action: int, label: int) -> float:
        asked.append((action, label))
        return costs[action, label]

    inputs, labels = data()
    env = MetricBanditVecEnv(inputs, labels, num_envs=10, reward=reward, seed=0)
    right = labels_of(env.reset())
    actions = np.arange(10) % 3
    np.testing.assert_allclose(env.step(actions)[1], costs[actions, right], rtol=1e-6)
    assert sorted(asked) == [(a, label) for a in range(3) for label in range(3)]


# ------------------------------------------------------------------------------- order and seeds


@pytest.mark.parametrize("num_envs", [1, 7, 60, 100])
def test_an_epoch_shows_each_input_once(num_envs: int) -> None:
    inputs, labels = data()
    env = MetricBanditVecEnv(inputs, labels, num_envs, seed=2)
    seen = [env.reset()]
    while sum(map(len, seen)) < 3 * len(inputs):
        seen.append(env.step(np.zeros(num_envs, dtype=int))[0])
    shown = np.concatenate(seen)[: 3 * len(inputs)].reshape(3, len(inputs), -1)
    for epoch in shown:
        np.testing.assert_array_equal(np.sort(epoch, axis=0), np.sort(inputs, axis=0))
    assert not np.array_equal(shown[0], shown[1])


def test_with_replacement_all_inputs_are_as_probable() -> None:
    """Counts of 60,000 draws of 60 inputs: χ² with 59 degrees of freedom is below 115 (p 10⁻⁵)."""
    inputs, labels = data()
    env = MetricBanditVecEnv(inputs, labels, 60_000, replacement=True, seed=2)
    _, counts = np.unique(env.reset(), axis=0, return_counts=True)
    assert len(counts) == 60
    assert 20 < np.sum((counts - 1000) ** 2 / 1000) < 115
    single = MetricBandit(inputs, labels, replacement=True)
    single.reset(seed=0)
    assert len({single.reset()[1]["index"] for _ in range(60)}) < 60


def test_seeds() -> None:
    inputs, labels = data()

    def run(env, steps=5):
        observations = [env.reset()]
        observations += [env.step(np.zeros(8, dtype=int))[0] for _ in range(steps)]
        return np.concatenate(observations)

    env = MetricBanditVecEnv(inputs, labels, 8, seed=4)
    first, second = run(env), run(env)
    assert not np.array_equal(first, second)
    env.seed(4)
    np.testing.assert_array_equal(run(env), first)
    np.testing.assert_array_equal(run(MetricBanditVecEnv(inputs, labels, 8, seed=4)), first)
    assert not np.array_equal(run(MetricBanditVecEnv(inputs, labels, 8, seed=5)), first)


# --------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize(
    ("agent", "settings"),
    [
        (REINFORCE, {"n_steps": 4, "learning_rate": 0.02}),
        (A2C, {"n_steps": 4, "learning_rate": 0.01}),
        (PPO, {"n_steps": 4, "batch_size": 64, "learning_rate": 0.01}),
        (TRPO, {"n_steps": 4, "target_kl": 0.1}),
        (stable_baselines3.A2C, {"n_steps": 4, "learning_rate": 0.01}),
    ],
    ids=lambda value: value.__module__ if isinstance(value, type) else "",
)
def test_agents_learn_to_classify(agent: type, settings: dict) -> None:
    """Of 512 inputs more than 85 % from hits and misses alone, 57 % of them of one class."""
    inputs, labels = data(512)
    env = MetricBanditVecEnv(inputs, labels, num_envs=64, seed=0)
    model = agent("MlpPolicy", env, seed=0, device="cpu", **settings)
    model.learn(30 * 4 * 64)
    actions, _ = model.predict(inputs, deterministic=True)
    accuracy = accuracy_score(labels, actions)
    assert accuracy > 0.85
    env.seed(0)  # an epoch of evaluations is the metric, exactly
    episodes, _ = evaluate_policy(model, env, n_eval_episodes=512, return_episode_rewards=True)
    assert np.mean(episodes) == pytest.approx(accuracy, rel=1e-9)


def test_balanced_rewards_find_rare_classes() -> None:
    """Inputs say nothing; one class in ten is 1, and is worth nine of the others."""
    inputs, labels = np.zeros((200, 2), np.float32), np.arange(200) % 10 == 0
    reward = {
        "plain": "accuracy",
        "weighted": lambda action, label: (action == label) * (1, 20)[label],
    }
    chosen = {}
    for name, kind in reward.items():
        env = MetricBanditVecEnv(inputs, labels, 100, kind, seed=0)
        model = TRPO("MlpPolicy", env, n_steps=2, target_kl=0.2, seed=0, device="cpu")
        model.learn(20 * 200)
        chosen[name] = int(model.predict(inputs[0], deterministic=True)[0])
    assert chosen == {"plain": 0, "weighted": 1}


# ----------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("kind", [MetricBandit, MetricBanditVecEnv])
@pytest.mark.parametrize(
    ("inputs", "labels", "options", "message"),
    [
        (np.zeros((5, 2)), np.zeros(4, int), {}, r"got \(5, 2\) and \(4,\)"),
        (np.zeros(5), np.arange(5), {}, r"inputs must have shape \(samples, \.\.\.\)"),
        (np.zeros((0, 2)), np.zeros(0, int), {}, "two or more"),
        (np.full((5, 2), np.nan), np.arange(5), {}, "inputs must be finite"),
        (np.zeros((5, 2)), np.arange(5) - 1, {}, r"labels must be classes 0, 1.*np\.unique"),
        (np.zeros((5, 2)), np.arange(5) / 2, {}, "labels must be classes"),
        (np.zeros((5, 2)), np.zeros(5, int), {}, "two or more"),
        (np.zeros((5, 2)), np.arange(5), {"reward": "f1"}, "reward must be 'accuracy', 'balanced'"),
        (
            np.zeros((5, 2)),
            np.arange(5),
            {"reward": lambda a, y: np.inf if (a, y) == (1, 3) else 0.0},
            r"reward\(1, 3\) is inf: rewards must be finite",
        ),
        (np.zeros((5, 2)), np.arange(5), {"reward": lambda a, y: None}, r"reward\(0, 0\) is None"),
        (np.zeros((5, 2)), np.arange(5), {"reward": lambda a, y: np.ones(1)}, r"is array\(\[1"),
        (np.zeros((2, 2)), [0, 10**7], {"reward": lambda a, y: 0.0}, r"10,000,001 classes.*unique"),
        (np.zeros((3, 2)), ["cat", "dog", "cat"], {}, r"labels must be classes 0, 1.*np\.unique"),
        (np.zeros((3, 2)), np.array([0, None, 1]), {}, r"labels must be classes"),
        (np.zeros((3, 2)), [0, np.nan, 1], {}, r"labels must be classes"),
        (np.zeros((3, 2)), [3, 3, 3], {}, "two or more"),
        (torch.zeros(3, 2, requires_grad=True), [0, 1, 2], {}, r"inputs .*tensor\.detach\(\)"),
    ],
)
def test_data_that_cannot_be_classified(kind, inputs, labels, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(inputs, labels, **options)


def test_what_else_cannot_work() -> None:
    with pytest.raises(ValueError, match="render_mode must be None"):
        MetricBandit(*data(), render_mode="human")
    with pytest.raises(ValueError, match="num_envs must be a positive integer, got 0"):
        MetricBanditVecEnv(*data(), num_envs=0)
    env = MetricBanditVecEnv(*data(), num_envs=4, seed=0)
    with pytest.raises(RuntimeError, match=r"call reset\(\) before the first step"):
        env.step(np.zeros(4, dtype=int))
    env.reset()
    with pytest.raises(ValueError, match=r"expected actions of shape \(4,\), got \(3,\)"):
        env.step(np.zeros(3, dtype=int))


@pytest.mark.parametrize("number", [1, 4])
@pytest.mark.parametrize("action", [-1, 3, 7, 0.5])
def test_actions_that_are_no_class_are_refused(number: int, action: float) -> None:
    """-1 would be the last class to an array."""
    single, many = MetricBandit(*data()), MetricBanditVecEnv(*data(), num_envs=number, seed=0)
    single.reset(seed=0)
    many.reset()
    with pytest.raises(ValueError, match="actions must be classes from 0 to 2"):
        single.step(action)
    with pytest.raises(ValueError, match="actions must be classes from 0 to 2"):
        many.step(np.array([action] + [0] * (number - 1)))


def test_a_single_one_is_reset_first() -> None:
    with pytest.raises(RuntimeError, match=r"call reset\(\) before the first step"):
        MetricBandit(*data()).step(np.int64(0))


@pytest.mark.parametrize(("reward", "worth"), [("accuracy", 1.0), ("balanced", 0.75)])
def test_rewards_of_hits_take_no_memory_of_the_classes(reward: str, worth: float) -> None:
    labels = np.array([0, 10**7, 10**7, 10**12, 3 * 10**12, 3 * 10**12])
    env = MetricBandit(np.zeros((6, 1)), labels, reward)
    seen = {}
    for seed in range(20):
        shown = env.reset(seed=seed)[1]["index"]
        assert env.step((labels[shown] + 1) % env.action_space.n)[1] == 0
        seen[labels[shown]] = env.step(labels[shown])[1]
    assert seen[10**7] == pytest.approx(worth)  # 6 samples, 4 classes, 2 of this one


def test_inputs_are_copied() -> None:
    inputs, labels = data()
    env = MetricBanditVecEnv(inputs, labels, num_envs=60, seed=0)
    inputs[:] = np.nan
    assert np.isfinite(env.reset()).all()
