"""Fitting the value function: both ways learn, skip what is not finite, and stay in the budget."""

import math

import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from agents import TRPO
from agents.critics import AdamCritic, GaussNewtonCritic, Snapshot
from agents.rollout import Batch
from tests.agents.helpers import (
    BOX,
    VECTOR,
    SharedMlp,
    Toy,
    both_critics,
    finite,
    parameters,
    same,
    small,
    vector_env,
)


class Budget:
    """A budget that is counted, not kept."""

    def __init__(self, spent: bool = False) -> None:
        self.spent, self.enforced = spent, 0

    def enforce(self) -> None:
        self.enforced += 1


def samples(size: int = 64, scale: float = 1.0) -> Batch:
    observations = torch.randn(size, 3)
    returns = scale * (2 * observations[:, 0] - observations[:, 1] + 3)
    nothing = torch.zeros(size)
    return Batch(observations, nothing, nothing, nothing, returns, nothing)


def critic_of(model: TRPO, critic: str, **settings):
    if critic == "adam":
        return AdamCritic(model.policy, model.parts, settings.get("epochs", 40), 16)
    return GaussNewtonCritic(model.policy, model.parts, settings.get("steps", 10))


def loss_of(model: TRPO, batch: Batch) -> float:
    with torch.no_grad():
        values = model.policy.predict_values(batch.observations).flatten()
    return float(((values - batch.returns) ** 2).mean())


@both_critics
def test_the_fit_learns_a_linear_value(critic: str) -> None:
    model = small(TRPO, vector_env(Toy), learning_rate=0.01)
    model.policy.optimizer.param_groups[0]["lr"] = 0.01
    data = samples()
    before = loss_of(model, data)
    budget = Budget()
    mean = critic_of(model, critic).fit(data, budget)
    after = loss_of(model, data)
    assert after < 0.05 * before
    assert after < mean < before
    assert budget.enforced == {"adam": 40, "gauss-newton": 10}[critic]


def test_one_gauss_newton_step_solves_least_squares() -> None:
    """A linear value is exactly least squares: one step with small damping is the solution."""
    model = small(TRPO, vector_env(Toy), policy_kwargs={"net_arch": []})
    critic = GaussNewtonCritic(model.policy, model.parts, steps=1)
    critic.optimizer.schedule.damping = 1e-8
    data = samples()
    critic.fit(data, Budget())
    np.testing.assert_allclose(
        model.policy.value_net.weight.detach().numpy(), [[2.0, -1.0, 0.0]], atol=2e-2
    )
    np.testing.assert_allclose(model.policy.value_net.bias.item(), 3.0, atol=2e-2)


def test_adam_does_what_sb3_contrib_does() -> None:
    """One epoch of one minibatch is one step of the policy's optimizer on the mean square."""
    model = small(TRPO, vector_env(Toy))
    data = samples(16)
    twin = small(TRPO, vector_env(Toy))
    AdamCritic(model.policy, model.parts, epochs=1, batch_size=16).fit(data, Budget())
    values = twin.policy.predict_values(data.observations).flatten()
    nn.functional.mse_loss(values, data.returns).backward()
    twin.policy.optimizer.step()
    for a, b in zip(parameters(model), parameters(twin), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_adam_shows_every_row_once_per_epoch(monkeypatch) -> None:
    model = small(TRPO, vector_env(Toy))
    seen: list[list[float]] = []
    predict = model.policy.predict_values

    def spied(observations):
        seen.append(observations[:, 0].tolist())
        return predict(observations)

    monkeypatch.setattr(model.policy, "predict_values", spied)
    data = samples(40)
    AdamCritic(model.policy, model.parts, epochs=2, batch_size=16).fit(data, Budget())
    assert [len(rows) for rows in seen] == [16, 16, 8] * 2
    epochs = [[x for rows in part for x in rows] for part in (seen[:3], seen[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(data.observations[:, 0].tolist())
    assert epochs[0] != epochs[1]


@both_critics
def test_only_the_critic_moves(critic: str) -> None:
    model = small(TRPO, vector_env(lambda: Toy(VECTOR, BOX)), critic=critic)
    critics = {id(p) for p in model.parts.critic}
    others = [p for p in model.policy.parameters() if id(p) not in critics]
    before = [p.detach().clone() for p in others]
    critic_of(model, critic, epochs=2, steps=2).fit(samples(), Budget())
    assert same(before, [p.detach() for p in others])
    assert all(p.grad is None for p in others)


@both_critics
def test_shared_weights_stay_once_the_budget_is_spent(critic: str) -> None:
    extractor = {"features_extractor_class": SharedMlp}
    model = small(TRPO, vector_env(Toy), policy_kwargs=extractor)
    shared = [p.detach().clone() for p in model.parts.shared]
    assert shared
    head = model.policy.value_net.weight.detach().clone()
    critic_of(model, critic, epochs=2, steps=2).fit(samples(), Budget(spent=True))
    assert same(shared, [p.detach() for p in model.parts.shared])
    assert not torch.equal(head, model.policy.value_net.weight)
    critic_of(model, critic, epochs=2, steps=2).fit(samples(), Budget())
    assert not same(shared, [p.detach() for p in model.parts.shared])


class NoHead(ActorCriticPolicy):
    """The value has no weight that the actor does not use."""

    def predict_values(self, obs):
        features = self.extract_features(obs, self.pi_features_extractor)
        return self.mlp_extractor.forward_actor(features).sum(1, keepdim=True)


@both_critics
def test_a_value_without_weights_of_its_own(critic: str) -> None:
    model = small(TRPO, vector_env(Toy), NoHead, critic=critic, learning_rate=0.05)
    model.learn(64 * 3)
    assert model._n_updates == 3
    assert finite(model)


@both_critics
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_losses_that_are_not_finite_move_nothing(critic: str, value: float) -> None:
    model = small(TRPO, vector_env(Toy), critic=critic)
    before = parameters(model)
    data = samples()
    data.returns[:] = value  # the square of 1e30 is no float32
    loss = critic_of(model, critic, epochs=2, steps=2).fit(data, Budget())
    assert not math.isfinite(loss)
    assert same(before, parameters(model))


def test_one_bad_minibatch_does_not_stop_the_others() -> None:
    model = small(TRPO, vector_env(Toy))
    before = parameters(model)
    data = samples()
    data.returns[3] = math.nan
    AdamCritic(model.policy, model.parts, epochs=1, batch_size=16).fit(data, Budget())
    assert finite(model)
    assert not same(before, parameters(model))
    assert model.policy.optimizer.state[model.policy.value_net.weight]["step"] == 3


def test_gauss_newton_lowers_its_damping_where_the_model_is_right() -> None:
    model = small(TRPO, vector_env(Toy), policy_kwargs={"net_arch": []})
    critic = GaussNewtonCritic(model.policy, model.parts, steps=3)
    critic.optimizer.schedule.damping = 1.0
    critic.fit(samples(), Budget())  # a linear value: least squares, exactly
    assert critic.optimizer.schedule.damping == 1 / 8
    critic.steps, critic.optimizer.schedule.damping = 1, 0.03
    critic.fit(samples(), Budget())
    assert critic.optimizer.schedule.damping == 0.02  # the floor


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_snapshots_restore_everything_or_nothing(bad: float) -> None:
    tensors = [torch.ones(3), torch.arange(4), torch.zeros(2, 2)]
    snapshot = Snapshot(tensors)
    tensors[0].mul_(2)
    assert snapshot.finite()
    tensors[1].add_(1)
    tensors[2][0, 1] = bad
    assert not snapshot.finite()
    snapshot.restore()
    assert [t.tolist() for t in tensors] == [[1, 1, 1], [0, 1, 2, 3], [[0, 0], [0, 0]]]
