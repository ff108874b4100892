"""NPG: one KL-normalised step, or a fixed multiplier, and no search."""

import numpy as np
import pytest
import torch

from agents import NPG
from npg.errors import ConfigurationError
from npg.steps import TrustRegion
from tests.agents.helpers import (
    ACTIONS,
    BOX,
    VECTOR,
    SharedMlp,
    Toy,
    finite,
    parameters,
    record_kl,
    same,
    small,
    vector_env,
)


def agent_of(**settings) -> NPG:
    return small(NPG, vector_env(lambda: Toy(VECTOR, BOX)), **settings)


@pytest.mark.parametrize("critic", ["adam", "gauss-newton"])
@pytest.mark.parametrize("actions", ACTIONS)
def test_the_kl_is_near_the_target(actions: str, critic: str) -> None:
    """The quadratic model is on the target; at small steps the true KL is near it."""
    space = ACTIONS[actions]
    env = vector_env(lambda: Toy(VECTOR, space), 2)
    model = small(NPG, env, critic=critic, target_kl=1e-3)
    divergences = record_kl(model)
    model.learn(128 * 4)
    np.testing.assert_allclose(divergences, 1e-3, rtol=0.15)


def test_a_fixed_multiplier_scales_the_step() -> None:
    moved = []
    for step_size in (1e-3, 2e-3):
        model = agent_of(step_size=step_size, critic="gauss-newton")
        before = model.policy.action_net.weight.detach().clone()
        model.learn(64)
        moved.append(model.policy.action_net.weight.detach() - before)
    assert moved[0].abs().max() > 1e-6
    torch.testing.assert_close(2 * moved[0], moved[1], rtol=1e-3, atol=1e-7)


def test_a_fixed_multiplier_knows_no_target() -> None:
    settings = {"step_size": 0.5, "critic": "gauss-newton"}
    first, second = (agent_of(target_kl=kl, **settings).learn(64) for kl in (0.01, 1e-5))
    assert same(parameters(first), parameters(second))
    # Nor does the critic's part of shared features.
    extractor = {"policy_kwargs": {"features_extractor_class": SharedMlp}}
    assert finite(agent_of(**settings, **extractor).learn(64))


def test_no_search_and_one_evaluation(monkeypatch) -> None:
    regions = []
    original = TrustRegion.search

    def spied(self, *args):
        regions.append(self)
        return original(self, *args)

    monkeypatch.setattr(TrustRegion, "search", spied)
    model = agent_of()
    model.learn(64)
    assert [r.target_kl for r in regions] == [pytest.approx(10 * model.target_kl)]
    assert model.logger.name_to_value["train/step_fraction"] == 1


@pytest.mark.parametrize("step_size", [0.0, -1.0, float("nan")])
def test_impossible_multipliers_are_refused(step_size: float) -> None:
    with pytest.raises(ConfigurationError, match="step_size"):
        agent_of(step_size=step_size)


def test_shared_features_leave_room_for_the_step() -> None:
    extractor = {"features_extractor_class": SharedMlp}
    model = agent_of(policy_kwargs=extractor, learning_rate=0.02, n_critic_updates=8)
    divergences = record_kl(model)
    model.learn(64 * 4)
    # Half for the critic's part, the whole for the step's; KLs of added steps are not added:
    # √KL is the length of a step, so (√½ + 1)² ≈ 2.9 times the target at worst, near it.
    assert max(divergences) < 3.2 * model.target_kl
