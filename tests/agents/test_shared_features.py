"""Features that actor and critic share: they learn from the critic, within half the bound."""

import numpy as np
import pytest
import torch
from torch import nn

from agents import TRPO, predictions
from agents.rollout import batch
from agents.shared_features import KLBudget, behaviour_of
from npg.steps import TrustRegion
from tests.agents.helpers import (
    BOX,
    DISCRETE,
    IMAGE,
    VECTOR,
    BatchNorm,
    SharedMlp,
    SmallCnn,
    Toy,
    frozen,
    joint_kl64,
    parameters,
    record_kl,
    same,
    small,
    vector_env,
)


def sharing(extractor=SharedMlp, observations=VECTOR, actions=BOX, **settings) -> TRPO:
    policy = "CnnPolicy" if observations is IMAGE else "MlpPolicy"
    env = vector_env(lambda: Toy(observations, actions))
    kwargs = {"features_extractor_class": extractor, "ortho_init": False}
    return small(TRPO, env, policy, policy_kwargs=kwargs, **settings)


def collected(model: TRPO):
    _, callback = model._setup_learn(model.n_steps)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return batch(model.rollout_buffer, model.action_space, model.device)


def budget_of(model: TRPO, observations, amount: float) -> KLBudget:
    behaviour = behaviour_of(model.policy, observations)
    return KLBudget(model.policy, model.parts.shared, observations, behaviour, amount)


@pytest.mark.parametrize("chunk", [2**26, 200])
def test_the_kl_is_the_one_from_outside(monkeypatch, chunk: int) -> None:
    monkeypatch.setattr(predictions, "CHUNK_BYTES", chunk)
    model = sharing()
    observations = torch.randn(50, 3)
    model.policy.set_training_mode(False)
    budget = budget_of(model, observations, 0.1)
    assert budget.kl() == pytest.approx(0, abs=1e-9)
    before = frozen(model.policy)
    with torch.no_grad():
        model.parts.shared[0].add_(0.2)
    outside = joint_kl64(before, frozen(model.policy), observations)
    assert outside > 1e-3
    assert budget.kl() == pytest.approx(outside, rel=1e-3)


def test_measuring_leaves_mode_and_statistics_alone() -> None:
    model = sharing(BatchNorm)
    observations = torch.randn(50, 3)
    model.policy.set_training_mode(False)
    budget = budget_of(model, observations, 0.1)
    for training in (True, False):
        model.policy.set_training_mode(training)
        before = parameters(model)
        budget.kl()
        assert model.policy.training == training
        assert same(before, parameters(model))


def test_a_displacement_within_the_budget_stays() -> None:
    model = sharing()
    observations = torch.randn(50, 3)
    budget = budget_of(model, observations, 0.1)
    with torch.no_grad():
        model.parts.shared[0].add_(1e-4)
    moved = parameters(model)
    budget.enforce()
    assert same(moved, parameters(model))
    assert not budget.spent


def test_a_displacement_beyond_is_shortened_onto_the_budget() -> None:
    model = sharing()
    observations = torch.randn(50, 3)
    before = frozen(model.policy)
    budget = budget_of(model, observations, 0.02)
    step = [torch.randn_like(p) for p in model.parts.shared]
    start = [p.detach().clone() for p in model.parts.shared]
    with torch.no_grad():
        for parameter, change in zip(model.parts.shared, step, strict=True):
            parameter.add_(change)
    assert budget.kl() > 0.03
    budget.enforce()
    assert budget.spent
    kl = joint_kl64(before, frozen(model.policy), observations)
    assert 0.95 * 0.02 < kl <= 0.02 * (1 + 1e-5)
    # along the displacement, one fraction for all
    fractions = [
        ((p.detach() - s) / c) for p, s, c in zip(model.parts.shared, start, step, strict=True)
    ]
    flat = torch.cat([f.flatten() for f in fractions])
    assert flat.std() < 1e-3
    assert 0 < flat.mean() < 1


def test_running_statistics_count_and_go_on_counting() -> None:
    model = sharing(BatchNorm)
    observations = 3 * torch.randn(50, 3) + 1
    model.policy.set_training_mode(False)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(3)
    budget = budget_of(model, observations, 0.01)
    for _ in range(3):
        model.policy.set_training_mode(True)
        with torch.no_grad():
            for _ in range(10):
                model.policy.extract_features(observations)
        assert budget.kl() > 0.01
        budget.enforce()
        assert budget.kl() <= 0.01
        assert budget.spent


def test_nothing_shared_costs_nothing(monkeypatch) -> None:
    model = small(TRPO, vector_env(Toy))
    budget = budget_of(model, torch.randn(50, 3), 0.01)
    monkeypatch.setattr(budget, "kl", lambda: pytest.fail("measured for nothing"))
    budget.enforce()


@pytest.mark.parametrize("critic", ["adam", "gauss-newton"])
@pytest.mark.parametrize(
    ("extractor", "observations"), [(SharedMlp, VECTOR), (SmallCnn, IMAGE), (BatchNorm, VECTOR)]
)
def test_features_learn_from_the_critic_even_if_the_line_search_fails(
    monkeypatch, critic, extractor, observations
) -> None:
    settings = {"critic": critic, "learning_rate": 0.02, "n_critic_updates": 8}
    model = sharing(extractor, observations, DISCRETE, **settings)
    search = TrustRegion.search

    def failing(self, tensors, direction, ceiling, evaluate):
        if self.target_kl == model.target_kl:
            return 0.0, None
        return search(self, tensors, direction, ceiling, evaluate)

    monkeypatch.setattr(TrustRegion, "search", failing)
    shared = {id(p) for p in model.parts.shared}
    before = {n: p.detach().clone() for n, p in model.policy.named_parameters()}
    divergences = record_kl(model)
    model.learn(64)
    for name, parameter in model.policy.named_parameters():
        if id(parameter) in shared and "features_extractor.net" in name and "weight" in name:
            assert not torch.equal(before[name], parameter), name
    assert torch.equal(before["action_net.weight"], model.policy.action_net.weight)
    assert 0 < divergences[0] <= model.target_kl / 2 * (1 + 1e-4)


@pytest.mark.parametrize("critic", ["adam", "gauss-newton"])
def test_the_critic_explains_more_through_features_that_learn(critic: str) -> None:
    """Rewards that only a moved feature can tell: the loss falls below that of a fixed one."""

    class Narrow(SharedMlp):
        def __init__(self, space, features_dim: int = 1) -> None:
            super().__init__(space, 1)
            with torch.no_grad():
                self.net[1].weight.copy_(torch.tensor([[0.0, 0.0, 1.0]]))  # blind to the rest

    settings = {"critic": critic, "learning_rate": 0.02, "n_critic_updates": 20, "target_kl": 0.05}
    model = sharing(Narrow, VECTOR, DISCRETE, critic_steps=5, **settings)
    weight = model.policy.features_extractor.net[1].weight
    model.learn(64 * 3)
    assert weight[0, :2].abs().max() > 0.02


def test_chunks_of_images_agree_with_the_whole(monkeypatch) -> None:
    """An update of a rollout that is cut into chunks is that of the whole."""
    results = []
    for size in (2**26, 5000):
        monkeypatch.setattr(predictions, "CHUNK_BYTES", size)
        model = sharing(SmallCnn, IMAGE, BOX, n_steps=32)
        divergences = record_kl(model)
        model.learn(32)
        results.append((parameters(model), divergences[0]))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-2)
    assert isinstance(model.policy.features_extractor.net[0], nn.Conv2d)
    assert collected(model).observations.dtype == torch.uint8
