"""Updates of TRPO and NPG that go wrong: skipped and counted, undone, or refused by name."""

import math
import warnings

import numpy as np
import pytest
import torch

from agents import TRPO
from agents.natural_policy import LARGEST_RETURN
from npg.errors import ConfigurationError, NumericalError
from npg.optim import NaturalGradient
from tests.agents.helpers import (
    BOX,
    VECTOR,
    Toy,
    both_agents,
    both_critics,
    finite,
    parameters,
    same,
    small,
    vector_env,
)
from tests.agents.rollouts import prepared


@both_critics
@both_agents
@pytest.mark.parametrize("reward", [1e20, 1e38, -1e38])
def test_exploding_rewards_are_a_counted_skip(agent, critic, reward) -> None:
    """The second rollout explodes; what is learned before and after it counts."""

    def rewards(total: int) -> float:
        return reward if 64 < total <= 128 else float(total % 3)

    model = small(agent, vector_env(lambda: Toy(reward=rewards)), critic=critic)
    states, logged = [], []
    train = model.train

    def watched() -> None:
        train()
        states.append(parameters(model))
        logged.append(model.logger.name_to_value.get("train/skipped_updates", 0))

    model.train = watched
    with pytest.warns(UserWarning, match="scale the reward"), np.errstate(over="ignore"):
        model.learn(64 * 3)
    assert same(states[0], states[1])
    assert not same(states[1], states[2])
    assert model.skipped_updates == logged[1] == 1
    assert model._n_updates == 3
    assert finite(model)


@both_agents
def test_rewards_beyond_single_precision_are_refused_where_they_appear(agent) -> None:
    model = small(agent, vector_env(lambda: Toy(reward=lambda total: 10.0 ** (min(total, 9) * 5))))
    before = parameters(model)
    with (
        np.errstate(over="ignore"),
        pytest.raises(NumericalError, match="reward of environment 0 at step 7"),
    ):
        model.learn(64)  # 10³⁵ is a float32, 10⁴⁰ is not
    assert same(before, parameters(model))


@both_critics
@both_agents
def test_large_returns_that_floats_can_hold_are_learned_from(agent, critic) -> None:
    env = vector_env(lambda: Toy(reward=lambda total: 1e11 * (total % 3)))
    model = small(agent, env, critic=critic)
    before = parameters(model)
    model.learn(64 * 3)
    assert finite(model)
    assert not same(before, parameters(model))
    assert model.skipped_updates == 0
    assert LARGEST_RETURN > 1e12


@both_critics
@both_agents
def test_no_advantage_is_a_counted_skip_of_the_policy_step(agent, critic) -> None:
    model = small(agent, vector_env(lambda: Toy(reward=lambda _: 0.0)), critic=critic, gamma=0.0)
    with torch.no_grad():
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.zero_()
    before = parameters(model)
    with pytest.warns(UserWarning, match="zero gradient"):
        model.learn(64 * 2)
    assert same(before, parameters(model))
    assert model.actor_optimizer.extra["skipped"] == 2
    assert model.skipped_updates == model.logger.name_to_value["train/skipped_updates"] == 2
    assert model.logger.name_to_value["train/is_line_search_success"] == 0
    assert all(
        not (isinstance(value, float) and math.isinf(value))
        for value in model.logger.name_to_value.values()
    )


@both_critics
@both_agents
def test_an_update_that_leaves_the_finite_numbers_is_undone(agent, critic, monkeypatch) -> None:
    model = prepared(agent, critic=critic)
    before = parameters(model)
    original = NaturalGradient.step

    def poisoned(self, *args, **kwargs):
        report = original(self, *args, **kwargs)
        with torch.no_grad():
            self.tensors()[0][0, 0] = math.nan
        return report

    monkeypatch.setattr(NaturalGradient, "step", poisoned)
    with pytest.warns(UserWarning, match="finite"):
        model.train()
    assert same(before, parameters(model))
    assert model.skipped_updates == 1
    monkeypatch.undo()
    model.learn(64)
    assert finite(model)
    assert not same(before, parameters(model))


@both_agents
def test_one_warning_for_many_skips(agent) -> None:
    model = small(agent, vector_env(lambda: Toy(reward=lambda _: 1e30)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(64 * 3)
    assert len([w for w in caught if "skipped" in str(w.message)]) == 1
    assert model.skipped_updates == 3


@both_critics
@both_agents
def test_bad_log_probabilities_move_no_actor(agent, critic) -> None:
    model = prepared(agent, critic=critic)
    actor = [p.detach().clone() for p in model.parts.actor]
    model.rollout_buffer.log_probs[3] = math.nan
    model.train()
    assert same(actor, [p.detach() for p in model.parts.actor])
    assert finite(model)
    assert model.logger.name_to_value["train/is_line_search_success"] == 0


@both_agents
def test_an_error_in_the_update_undoes_all_of_it(agent, monkeypatch) -> None:
    """Also where it comes after the critic's fit: parameters are never half-stepped."""
    model = small(agent, vector_env(lambda: Toy(VECTOR, BOX)))
    model.learn(64)
    before = parameters(model)

    def fail(*_args) -> None:
        raise MemoryError

    monkeypatch.setattr(model, "_step", fail)
    with pytest.raises(MemoryError):
        model.train()
    assert same(parameters(model), before)
    assert not model.policy.training


@both_agents
def test_a_terminal_observation_that_is_no_number_is_named(agent) -> None:
    class Cut(Toy):
        def step(self, action):
            observation, reward, _, truncated, info = super().step(action)
            observation = np.full_like(observation, np.nan) if truncated else observation
            return observation, reward, False, truncated, info

    env = vector_env(lambda: Cut(VECTOR, BOX))
    with pytest.raises(NumericalError, match="terminal observation of environment"):
        small(agent, env).learn(64)


@pytest.mark.parametrize(
    "changed",
    [{"target_kl": 0.0}, {"cg_max_steps": 0}, {"critic_steps": 0}, {"batch_size": 16.0}],
)
def test_attributes_are_checked_where_they_change_later(changed) -> None:
    model = prepared(TRPO)
    before = [p.detach().clone() for p in parameters(model)]
    for name, value in changed.items():
        setattr(model, name, value)
    with pytest.raises(ConfigurationError, match=next(iter(changed))):
        model.train()
    assert same(before, parameters(model))
