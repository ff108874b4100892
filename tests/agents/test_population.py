"""Returns of a population are those of its candidates one by one, whatever ends their episodes."""

import copy
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize
from torch.nn.utils import vector_to_parameters

from agents import ES, population
from npg.errors import ConfigurationError, NumericalError
from tests.agents.helpers import DICTIONARY, VECTOR, Toy, finite, parameters, same, vector_env


class Slide(gym.Env):
    """The same start every time; the actions decide how far it goes, for how long.

    Args:
        limit: Steps until truncation.
        reward: Of the second step, instead of its own.
        observation: After the second step, instead of its own.
    """

    observation_space = spaces.Box(-100, 100, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(
        self, limit: int = 12, reward: float | None = None, observation: float | None = None
    ) -> None:
        self.limit, self.reward, self.observation = limit, reward, observation
        self.actions: list[float] = []
        self.resets = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.x, self.t, self.resets = 0.5, 0, self.resets + 1
        return self._now(), {}

    def _now(self) -> np.ndarray:
        return np.array([self.x, self.t / 5], np.float32)

    def step(self, action):
        assert self.action_space.contains(action)
        self.actions.append(float(action[0]))
        self.x = 1.3 * self.x + float(action[0])
        self.t += 1
        now, reward = self._now(), 1.0 + self.x / 10
        if self.t == 2 and action[0] > 0:
            reward = reward if self.reward is None else self.reward
            now = now if self.observation is None else np.full(2, self.observation, np.float32)
        return now, reward, abs(self.x) > 3, self.t >= self.limit, {}


def searcher(env, **settings) -> ES:
    settings = {"n_candidates": 10, "sigma": 1.0, "seed": 0, "device": "cpu", **settings}
    return ES("MlpPolicy", env, policy_kwargs={"net_arch": [4]}, **settings)


def asked(model: ES) -> torch.Tensor:
    """The candidates that the next population will have."""
    return copy.deepcopy(model.policy.optimizer).ask()


def evaluated(model: ES, callback: BaseCallback | None = None) -> np.ndarray:
    """The returns of one population, not yet learned from."""
    _, callbacks = model._setup_learn(1, callback, reset_num_timesteps=False)
    assert model.collect_rollouts(model.env, callbacks, model.rollout_buffer, 1)
    return model._returns


def one_by_one(model: ES, candidates: torch.Tensor, env) -> tuple[np.ndarray, np.ndarray]:
    """Return and length of an episode of each candidate's own policy."""
    own = copy.deepcopy(model.policy.state_dict())
    episodes = []
    for candidate in candidates:
        vector_to_parameters(candidate, model.policy.optimizer.tensors())
        episodes.append(evaluate_policy(model, env, 1, return_episode_rewards=True))
    model.policy.load_state_dict(own)
    returns, lengths = zip(*episodes, strict=True)
    return np.array(returns)[:, 0], np.array(lengths)[:, 0]


@pytest.mark.parametrize("n_episodes", [1, 3])
@pytest.mark.parametrize("count", [1, 3, 16])
def test_returns_are_those_of_each_candidate_alone(count: int, n_episodes: int) -> None:
    model = searcher(vector_env(lambda: Monitor(Slide()), count), n_episodes=n_episodes)
    candidates, before = asked(model), parameters(model)
    expected, lengths = one_by_one(model, candidates, vector_env(lambda: Monitor(Slide())))
    assert len(np.unique(lengths)) > 2
    np.testing.assert_allclose(evaluated(model), expected, rtol=1e-5)
    assert same(before, parameters(model))
    # Nobody's episodes are not among those that are told of; all others are.
    told = sorted(episode["l"] for episode in model.ep_info_buffer)
    assert told == sorted(np.repeat(lengths, n_episodes).tolist())
    steps = n_episodes * lengths.sum()
    idle = 1 - steps / model.num_timesteps
    assert model.logger.name_to_value["rollout/idle_fraction"] == pytest.approx(idle)
    assert (idle == 0) == (count == 1)


def test_two_populations_meet_the_same_start() -> None:
    """Environments that were left within an episode are reset, not played on."""
    model = searcher(vector_env(lambda: Monitor(Slide()), 4))
    first = evaluated(model)
    assert not model._last_episode_starts.all()
    candidates = asked(model)
    expected, _ = one_by_one(model, candidates, vector_env(lambda: Monitor(Slide())))
    second = evaluated(model)
    np.testing.assert_allclose(second, expected, rtol=1e-5)
    assert not np.allclose(first, second)


def test_idle_environments_play_the_policys_own_parameters() -> None:
    env = vector_env(lambda: Slide(limit=3), 16)
    model = searcher(env)
    evaluated(model)
    own = model.predict(np.array([0.5, 0], np.float32), deterministic=True)[0]
    played = [inner.actions[0] for inner in env.envs]
    np.testing.assert_allclose(played[10:], own.repeat(6), rtol=1e-5)
    assert not np.isclose(played[:10], own).any()


# ------------------------------------------------------------------------------------- long ones


def test_a_limit_cuts_episodes_and_counts_what_they_had() -> None:
    model = searcher(vector_env(lambda: Slide(limit=1000), 4), max_episode_steps=5)
    judge = vector_env(lambda: Monitor(Slide(limit=5)))
    expected, lengths = one_by_one(model, asked(model), judge)
    assert {5} < set(lengths.tolist())  # some end by themselves
    np.testing.assert_allclose(evaluated(model), expected, rtol=1e-5)


def test_episodes_that_never_end_are_an_error(monkeypatch) -> None:
    monkeypatch.setattr(population, "ENDLESS", 50)

    class Endless(Toy):
        def step(self, action):
            return *super().step(action)[:2], False, False, {}

    model = searcher(vector_env(Endless))
    with pytest.raises(ConfigurationError, match="max_episode_steps"):
        model.learn(10)
    assert model.num_timesteps == 50
    cut = searcher(vector_env(Endless, 3), max_episode_steps=20).learn(10)
    assert cut.num_timesteps == 4 * 3 * 20  # ten candidates in four rounds of three
    assert cut._n_updates == 1


# ----------------------------------------------------------------------------- what is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["reward", "observation"])
@pytest.mark.parametrize("count", [1, 4])
def test_candidates_that_meet_it_are_dropped_and_no_others(what, value, count) -> None:
    model = searcher(vector_env(lambda: Slide(**{what: value}), count))
    twin = searcher(vector_env(Slide, count))
    returns, healthy = evaluated(model), evaluated(twin)
    dropped = ~np.isfinite(returns)
    assert 1 < dropped.sum() < 9
    np.testing.assert_array_equal(returns[~dropped], healthy[~dropped])
    model.train()
    assert model.logger.name_to_value["train/dropped"] == dropped.sum()
    assert finite(model)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_policies_that_give_no_finite_action_are_dropped() -> None:
    model = searcher(vector_env(Slide, 2), sigma=1e38)
    assert not np.isfinite(evaluated(model)).all()
    model.train()
    assert finite(model)


def test_no_finite_return_at_all_is_skipped_and_at_last_an_error() -> None:
    model = searcher(vector_env(lambda: Toy(reward=lambda _: math.nan), 2))
    before = parameters(model)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(NumericalError, match="3 steps in a row"),
    ):
        model.learn(10_000)
    assert same(before, parameters(model))
    assert model.skipped_updates == 2


@pytest.mark.parametrize("dictionary", [False, True])
def test_statistics_of_observations_that_are_spoiled_are_named(dictionary: bool) -> None:
    """One NaN, and VecNormalize gives nothing else ever after."""

    class Spoiled(Toy):
        def step(self, action):
            observation, *rest = super().step(action)
            if self.total == 30:
                (observation["angle"] if dictionary else observation)[...] = math.nan
            return observation, *rest

    space = DICTIONARY if dictionary else VECTOR
    env = VecNormalize(vector_env(lambda: Spoiled(space, death=0), 2))
    policy = "MultiInputPolicy" if dictionary else "MlpPolicy"
    model = ES(policy, env, n_candidates=6, seed=0, device="cpu")
    what = "statistics of 'angle' of" if dictionary else "statistics of"
    with pytest.raises(NumericalError, match=f"{what} VecNormalize are not finite"):
        model.learn(10_000)
    assert finite(model)


def test_numbers_whose_squares_overflow_are_no_fault() -> None:
    assert np.isfinite(evaluated(searcher(vector_env(lambda: Slide(observation=1e30), 2)))).all()


# ------------------------------------------------------------------------------------ normalisers


def test_returns_are_of_raw_rewards() -> None:
    raw = searcher(vector_env(Slide, 2))
    scaled = searcher(VecNormalize(vector_env(Slide, 2), norm_obs=False, clip_reward=0.1))
    np.testing.assert_array_equal(evaluated(raw), evaluated(scaled))
    assert scaled.get_vec_normalize_env().ret_rms.var != 1.0


def test_normalised_dictionaries() -> None:
    env = VecNormalize(vector_env(lambda: Toy(DICTIONARY, VECTOR), 3), norm_reward=False)
    settings = {"n_candidates": 4, "seed": 0, "device": "cpu"}
    model = ES("MultiInputPolicy", env, **settings).learn(100)
    assert model._n_updates >= 1
    assert model.get_vec_normalize_env().obs_rms["angle"].count > 30


# -------------------------------------------------------------------------------------- callbacks


class Looker(BaseCallback):
    """Keeps what callbacks look at, and stops at a step."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.stop, self.seen, self.ended = stop, [], 0

    def _on_step(self) -> bool:
        names = ("new_obs", "rewards", "dones", "infos", "actions", "clipped_actions", "n_steps")
        self.seen.append({name: self.locals[name] for name in names})
        assert self.locals["env"] is self.model.env
        assert self.num_timesteps == self.model.num_timesteps
        return self.n_calls != self.stop

    def _on_rollout_end(self) -> None:
        self.ended += 1


def test_locals_hold_the_transition() -> None:
    looker = Looker()
    model = searcher(vector_env(Slide, 2))
    evaluated(model, looker)
    assert [step["n_steps"] for step in looker.seen] == list(range(model.num_timesteps // 2))
    for step in looker.seen:
        np.testing.assert_array_equal(step["clipped_actions"], np.clip(step["actions"], -1, 1))
        assert step["rewards"].shape == step["dones"].shape == (2,)
        assert len(step["infos"]) == 2
    played = [inner.actions for inner in model.env.envs]
    for i in range(2):
        done = [float(step["clipped_actions"][i, 0]) for step in looker.seen]
        np.testing.assert_allclose(played[i], done)
    assert looker.ended == 1


def test_a_stopped_population_is_forgotten_and_the_next_begins_anew() -> None:
    looker = Looker(stop=7)
    model = searcher(vector_env(Slide, 4))
    before = parameters(model)
    model.learn(1000, callback=looker)
    assert len(looker.seen) == 7
    assert looker.ended == 0
    assert model.num_timesteps == 28
    assert model._n_updates == 0
    assert same(before, parameters(model))
    candidates = asked(model)
    expected, lengths = one_by_one(model, candidates, vector_env(lambda: Monitor(Slide())))
    model.learn(1, reset_num_timesteps=False)
    np.testing.assert_allclose(model._returns, expected, rtol=1e-5)
    assert model._n_updates == 1
    assert model.num_timesteps >= 28 + lengths.sum()


def load(model: ES, path) -> None:
    model.set_parameters(path)


def write(model: ES, _) -> None:
    with torch.no_grad():
        model.policy.action_net.weight.add_(0.5)


def load_the_optimizer(model: ES, _) -> None:
    model.policy.optimizer.load_state_dict(model.policy.optimizer.state_dict())


class Once(BaseCallback):
    """Does something to the model at its third step, or at the end of the first population."""

    def __init__(self, act, at_the_end: bool) -> None:
        super().__init__()
        self.act, self.at_the_end = act, at_the_end

    def _on_step(self) -> bool:
        if self.n_calls == 3 and not self.at_the_end:
            self._act()
        return True

    def _on_rollout_end(self) -> None:
        if self.at_the_end:
            self._act()

    def _act(self) -> None:
        if self.act is not None:
            self.act(self.model)
            self.act, self.after = None, parameters(self.model)


@pytest.mark.parametrize("at_the_end", [False, True])
@pytest.mark.parametrize("act", [load, write, load_the_optimizer])
def test_a_population_whose_policy_a_callback_changed_counts_for_nothing(
    act, at_the_end: bool, tmp_path
) -> None:
    model = searcher(vector_env(Slide, 4))
    searcher(vector_env(Slide, 4), seed=3).save(tmp_path / "other")
    callback = Once(lambda model: act(model, tmp_path / "other"), at_the_end)
    with pytest.warns(UserWarning, match="a callback changed the policy"):
        model.learn(1, callback=callback)
    assert same(parameters(model), callback.after)
    assert (model._n_updates, model.skipped_updates) == (0, 1)
    model.learn(1, reset_num_timesteps=False)
    assert (model._n_updates, model.skipped_updates) == (1, 1)
    assert not same(parameters(model), callback.after)


def test_a_policy_that_is_put_back_was_not_changed() -> None:
    """As where a callback evaluates averaged parameters."""

    def there_and_back(model: ES) -> None:
        weight = model.policy.action_net.weight
        own = weight.detach().clone()
        with torch.no_grad():
            weight.zero_()
            weight.copy_(own)

    model = searcher(vector_env(Slide, 4)).learn(1, callback=Once(there_and_back, False))
    assert (model._n_updates, model.skipped_updates) == (1, 0)
