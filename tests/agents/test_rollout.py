"""The buffer: what it keeps, in which order it gives it back, and custom buffer classes."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents import TRPO
from agents.rollout import DictRollout, Rollout, batch
from tests.agents.helpers import (
    ACTIONS,
    AGENTS,
    BOX,
    DICTIONARY,
    DISCRETE,
    VECTOR,
    Toy,
    every_variant,
    finite,
    parameters,
    same,
    small,
    vector_env,
)


def filled(observations=VECTOR, actions=DISCRETE, count: int = 2, **settings) -> TRPO:
    policy = "MultiInputPolicy" if isinstance(observations, spaces.Dict) else "MlpPolicy"
    env = vector_env(lambda: Toy(observations, actions), count)
    model = small(TRPO, env, policy, n_steps=8, batch_size=8, **settings)
    _, callback = model._setup_learn(8)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 8)
    return model


def test_the_right_buffer_is_chosen() -> None:
    assert type(filled().rollout_buffer) is Rollout
    assert type(filled(DICTIONARY).rollout_buffer) is DictRollout


def test_observations_are_stored_once_in_the_policy_s_precision() -> None:
    doubles = filled(spaces.Box(-9, 9, (3,), np.float64)).rollout_buffer
    assert doubles.observations.dtype == np.float32
    assert filled(spaces.Discrete(4)).rollout_buffer.observations.dtype.kind == "i"


def test_arrays_are_kept_from_rollout_to_rollout() -> None:
    model = filled()
    buffer = model.rollout_buffer
    arrays = {name: value for name, value in vars(buffer).items() if isinstance(value, np.ndarray)}
    assert len(arrays) >= 8
    model.learn(8 * 2 * 3)
    for name, array in arrays.items():
        assert getattr(buffer, name) is array, name


@pytest.mark.parametrize("actions", ACTIONS)
def test_a_batch_has_all_samples_in_step_major_order(actions: str) -> None:
    model = filled(VECTOR, ACTIONS[actions])
    buffer, space = model.rollout_buffer, model.action_space
    samples = batch(buffer, space, model.device)
    assert samples.returns.shape == samples.advantages.shape == samples.log_probs.shape == (16,)
    for t in range(8):
        for env in range(2):
            row = 2 * t + env
            np.testing.assert_array_equal(samples.observations[row], buffer.observations[t, env])
            np.testing.assert_array_equal(
                np.ravel(samples.actions[row]), np.ravel(buffer.actions[t, env])
            )
            for name in ("returns", "advantages", "log_probs"):
                assert getattr(samples, name)[row] == getattr(buffer, name)[t, env]
    kind = torch.int64 if isinstance(space, spaces.Discrete) else torch.float32
    assert samples.actions.dtype == kind
    distribution = model.policy.get_distribution(samples.observations)
    torch.testing.assert_close(
        distribution.log_prob(samples.actions), samples.log_probs, atol=1e-6, rtol=1e-5
    )


def test_dictionaries_of_observations_keep_their_rows_together() -> None:
    model = filled(DICTIONARY, BOX)
    samples = batch(model.rollout_buffer, model.action_space, model.device)
    assert isinstance(samples.observations, dict)
    assert {key: tuple(v.shape) for key, v in samples.observations.items()} == {
        "angle": (16, 3),
        "velocity": (16, 2),
    }
    values = model.policy.predict_values(samples.observations).flatten()
    torch.testing.assert_close(values + samples.advantages, samples.returns, atol=1e-5, rtol=1e-5)


def rows(samples) -> Tensor:
    """All samples as rows in an order that depends on their content only."""
    columns = [samples.observations, samples.actions.reshape(16, -1).float()]
    columns += [c[:, None] for c in (samples.log_probs, samples.advantages, samples.returns)]
    table = torch.cat(columns, dim=1)
    return table[table[:, 0].argsort()]


@pytest.mark.parametrize("actions", ACTIONS)
def test_a_batch_after_get_holds_the_same_samples(actions: str) -> None:
    """SB3's `get` turns the arrays over; a callback may have called it."""
    model = filled(VECTOR, ACTIONS[actions])
    before = rows(batch(model.rollout_buffer, model.action_space, model.device))
    list(model.rollout_buffer.get(4))
    after = rows(batch(model.rollout_buffer, model.action_space, model.device))
    torch.testing.assert_close(before, after, atol=0, rtol=0)


class Reader(BaseCallback):
    """Reads minibatches at the end of each rollout, as some logging callbacks do."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        sizes = [len(samples.returns) for samples in self.model.rollout_buffer.get(50)]
        assert sum(sizes) == 64 * self.model.n_envs


@pytest.mark.parametrize("observations", [VECTOR, DICTIONARY], ids=["vector", "dict"])
def test_training_goes_on_where_a_callback_reads_the_buffer(observations) -> None:
    policy = "MultiInputPolicy" if observations is DICTIONARY else "MlpPolicy"
    model = small(TRPO, vector_env(lambda: Toy(observations, BOX), 2), policy)
    before = parameters(model)
    model.learn(64 * 2 * 3, callback=Reader())
    assert model._n_updates == 3
    assert not same(before, parameters(model))
    assert finite(model)


def test_an_incomplete_rollout_has_advantages_for_what_it_holds() -> None:
    model = filled(count=1)
    buffer = model.rollout_buffer
    whole = buffer.advantages.copy()
    buffer.pos, buffer.full = 5, False
    ended = buffer.episode_starts[5].astype(bool)
    following = buffer.values[5].copy()
    buffer.advantages[:] = np.nan
    buffer.gae_lambda = 0.0
    buffer.compute_returns_and_advantage(torch.tensor(following), ended)
    next_values = np.where(ended, buffer.bootstrap[4], following)
    expected = buffer.rewards[4] + buffer.gamma * next_values - buffer.values[4]
    np.testing.assert_allclose(buffer.advantages[4], expected, rtol=1e-5)
    assert np.isfinite(buffer.advantages[:5]).all()
    assert np.isnan(buffer.advantages[5:]).all()
    assert whole.shape == buffer.advantages.shape


# -------------------------------------------------------------------------------- custom classes


class Counting(RolloutBuffer):
    added = 0
    extra = None

    def __init__(self, *args, extra=None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.extra = extra

    def add(self, *args, **kwargs) -> None:
        super().add(*args, **kwargs)
        self.added += 1


class CountingDict(DictRolloutBuffer):
    added = 0

    def add(self, *args, **kwargs) -> None:
        super().add(*args, **kwargs)
        self.added += 1


@every_variant
@pytest.mark.parametrize("actions", ACTIONS)
def test_a_custom_buffer_is_used_and_trained_from(agent, settings, actions) -> None:
    model = small(
        agent,
        vector_env(lambda: Toy(VECTOR, ACTIONS[actions]), 2),
        **settings,
        rollout_buffer_class=Counting,
        rollout_buffer_kwargs={"extra": 5},
    )
    before = parameters(model)
    model.learn(64 * 2 * 2)
    assert type(model.rollout_buffer) is Counting
    assert model.rollout_buffer.extra == 5
    assert model.rollout_buffer.added == 128
    assert model.num_timesteps == 256
    assert not same(before, parameters(model))
    if agent in AGENTS:
        assert model.logger.name_to_value["train/is_line_search_success"] == 1


def test_a_custom_dictionary_buffer() -> None:
    env = vector_env(lambda: Toy(DICTIONARY, BOX), 2)
    model = small(TRPO, env, "MultiInputPolicy", rollout_buffer_class=CountingDict).learn(256)
    assert model.rollout_buffer.added == 128
    assert finite(model)


def test_the_update_from_a_custom_buffer_is_that_from_ours() -> None:
    """Same samples in another order: the updates differ by the rounding of sums only."""
    settings = {"critic": "gauss-newton", "critic_steps": 1}

    def env():
        return vector_env(lambda: Toy(VECTOR, BOX), 2)

    ours = small(TRPO, env(), **settings)
    _, callback = ours._setup_learn(128)
    ours.collect_rollouts(ours.env, callback, ours.rollout_buffer, 64)
    theirs = small(TRPO, env(), rollout_buffer_class=RolloutBuffer, **settings)
    theirs._setup_learn(128)
    assert same(parameters(ours), parameters(theirs))
    for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
        getattr(theirs.rollout_buffer, name)[:] = getattr(ours.rollout_buffer, name)
    theirs.rollout_buffer.pos, theirs.rollout_buffer.full = 64, True
    before = parameters(ours)
    ours.train()
    theirs.train()
    assert not same(before, parameters(ours))
    for a, b in zip(ours.parts.actor, theirs.parts.actor, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    for a, b in zip(ours.parts.critic, theirs.parts.critic, strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)  # CG amplifies; it moved by 2
