"""What TRPO and NPG share: the objective, and the arguments that are refused."""

import math
import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from agents import NPG, TRPO
from agents.arguments import BatchOfOneError
from agents.rollout import batch
from npg.errors import ConfigurationError
from npg.optim import NaturalGradient, NewtonCG
from npg.steps import TrustRegion
from tests.agents.helpers import (
    ACTIONS,
    BOX,
    DISCRETE,
    VECTOR,
    SharedMlp,
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

# ----------------------------------------------------------------------------------- the objective


@both_agents
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("actions", ACTIONS)
def test_the_step_ascends_the_surrogate(agent, normalize, actions) -> None:
    model = prepared(agent, actions=ACTIONS[actions], normalize_advantage=normalize)
    data = batch(model.rollout_buffer, model.action_space, model.device)
    advantages = data.advantages
    if normalize:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)

    def surrogate() -> float:
        with torch.no_grad():
            log_probs = model.policy.get_distribution(data.observations).log_prob(data.actions)
        return float((advantages * (log_probs - data.log_probs).exp()).mean())

    before = surrogate()
    np.testing.assert_allclose(before, advantages.mean(), atol=1e-6)  # all ratios are 1
    model.train()
    assert surrogate() > before + 1e-3 * float(advantages.std())
    logged = model.logger.name_to_value["train/policy_objective"]
    np.testing.assert_allclose(logged, surrogate(), rtol=1e-3, atol=1e-5)


def test_the_direction_is_the_natural_gradient() -> None:
    """θ' − θ ∝ (F + λI)⁻¹ g, with F and g formed densely from the log-probabilities alone."""
    model = prepared(NPG, policy_kwargs={"net_arch": []}, cg_max_steps=60, cg_damping=0.05)
    data = batch(model.rollout_buffer, model.action_space, model.device)
    actor = model.parts.actor
    advantages = (data.advantages - data.advantages.mean()) / (data.advantages.std() + 1e-8)
    scores, weights = [], []
    for row in range(64):
        distribution = model.policy.get_distribution(data.observations[row : row + 1]).distribution
        probabilities = distribution.probs.detach()[0]
        for action in range(3):  # E over the policy's own actions, exactly
            log_prob = distribution.log_prob(torch.tensor([action]))[0]
            gradient = torch.autograd.grad(log_prob, actor, retain_graph=True)
            scores.append(torch.cat([g.flatten() for g in gradient]).double())
            weights.append(probabilities[action].double())
    table, probability = torch.stack(scores), torch.stack(weights)
    fisher = (table * probability[:, None]).T @ table / 64
    taken = table.reshape(64, 3, -1)[torch.arange(64), data.actions]
    gradient = (advantages[:, None].double() * taken).mean(0)
    direction = torch.linalg.solve(fisher + 0.05 * torch.eye(len(fisher)).double(), gradient)
    direction *= math.sqrt(2 * model.target_kl / float(direction @ fisher @ direction))
    before = torch.cat([p.detach().flatten() for p in actor]).double()
    model.train()
    after = torch.cat([p.detach().flatten() for p in actor]).double()
    torch.testing.assert_close(after - before, direction, atol=1e-4, rtol=1e-3)


@both_agents
def test_both_curvatures_agree(agent) -> None:
    moved = []
    for curvature in ("fisher-cg", "fisher-dense"):
        settings = {"cg_max_steps": 200, "policy_kwargs": {"net_arch": [4]}}
        model = prepared(agent, curvature=curvature, critic="gauss-newton", **settings)
        model.train()
        moved.append(parameters(model))
    for a, b in zip(*moved, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


@both_agents
def test_a_sub_sample_changes_the_fisher_matrix_only(agent, monkeypatch) -> None:
    seen: list[int] = []
    original = NaturalGradient.step

    def spied(self, closure, *, reference, prediction):
        _, output = closure()
        assert output.batch_shape == (64,)
        seen.append(prediction().batch_shape[0])
        return original(self, closure, reference=reference, prediction=prediction)

    monkeypatch.setattr(NaturalGradient, "step", spied)
    prepared(agent, sub_sampling_factor=3).train()
    prepared(agent, sub_sampling_factor=1000).train()
    assert seen == [21, 1]


@both_agents
def test_settings_reach_the_engine(agent) -> None:
    model = small(agent, vector_env(Toy), cg_damping=0.3, target_kl=0.07, cg_max_steps=4)
    group = model.actor_optimizer.param_groups[0]
    assert (group["damping"], group["target_kl"], group["lr"]) == (0.3, 0.07, 1.0)
    model.learn(64)
    assert model.logger.name_to_value["train/cg_iterations"] <= 4
    assert group["line_search"] == (agent is TRPO)


@both_critics
def test_attributes_that_a_callback_changes_count(critic, monkeypatch) -> None:
    model = prepared(TRPO, critic=critic)
    search = {"target_kl": 0.02, "line_search_shrinking_factor": 0.37, "line_search_max_iter": 3}
    passes = {"n_critic_updates": 3, "batch_size": 16, "critic_steps": 5}
    for name, value in {**search, **passes, "cg_max_steps": 2, "step_norm": "damped"}.items():
        setattr(model, name, value)
    regions, fits = [], []
    record_calls(monkeypatch, TrustRegion, "search", regions)
    record_calls(monkeypatch, torch.optim.Adam if critic == "adam" else NewtonCG, "step", fits)
    model.train()
    assert regions[-1] == TrustRegion(*search.values())
    assert len(fits) == (3 * 64 // 16 if critic == "adam" else 5)
    assert model.logger.name_to_value["train/cg_iterations"] == 2
    assert model.actor_optimizer.param_groups[0]["step_norm"] == "damped"


def record_calls(monkeypatch, cls: type, method: str, objects: list) -> None:
    """Appends the object to the list wherever the method is called."""
    original = getattr(cls, method)

    def spied(self, *args, **named):
        objects.append(self)
        return original(self, *args, **named)

    monkeypatch.setattr(cls, method, spied)


# ----------------------------------------------------------------------------------- small batches


@both_agents
@both_critics
def test_one_sample_has_no_deviation(agent, critic) -> None:
    settings = {"n_steps": 1, "batch_size": 1, "critic": critic}
    with pytest.raises(BatchOfOneError, match="n_steps \\* n_envs") as raised:
        small(agent, vector_env(Toy), **settings)
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, AssertionError)  # sb3-contrib's contract
    model = small(agent, vector_env(Toy), normalize_advantage=False, **settings).learn(5)
    assert model._n_updates == 5
    assert finite(model)
    two = small(agent, vector_env(Toy, 2), **settings).learn(6)
    assert two._n_updates == 3
    assert finite(two)


@both_agents
def test_minibatches_of_one(agent) -> None:
    assert finite(small(agent, vector_env(Toy), batch_size=1).learn(64))


@both_agents
def test_a_truncated_minibatch_is_announced(agent) -> None:
    with pytest.warns(UserWarning, match="mini-batch size of 60") as caught:
        small(agent, vector_env(Toy), batch_size=60)
    assert "mini-batch of size 4" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(agent, vector_env(Toy), batch_size=16)
        small(agent, vector_env(Toy), batch_size=60, critic="gauss-newton")


# --------------------------------------------------------------------------------------- arguments


@both_agents
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"critic": "sgd"}, "critic"),
        ({"curvature": "shampoo"}, "curvature"),
        ({"target_kl": 0}, "target_kl"),
        ({"target_kl": -1}, "target_kl"),
        ({"target_kl": "0.01"}, "target_kl"),
        ({"cg_damping": -0.1}, "damping"),
        ({"cg_damping": math.nan}, "damping"),
        ({"cg_max_steps": 0}, "cg_max_steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"n_critic_updates": 0}, "n_critic_updates"),
        ({"sub_sampling_factor": 0}, "sub_sampling_factor"),
        ({"critic_steps": 0, "critic": "gauss-newton"}, "critic_steps"),
    ],
)
def test_impossible_arguments_are_refused_by_name(agent, settings, named) -> None:
    with pytest.raises(ConfigurationError, match=named) as raised:
        small(agent, vector_env(Toy), **settings)
    assert isinstance(raised.value, ValueError)


@both_agents
@pytest.mark.parametrize(
    "space",
    [spaces.Tuple([DISCRETE, BOX]), spaces.Dict({"a": BOX}), spaces.Text(3)],
    ids=["tuple", "dict", "text"],
)
def test_other_action_spaces_are_refused(agent, space) -> None:
    class Other(Toy):
        def step(self, action):
            raise AssertionError("never stepped")

    with pytest.raises((AssertionError, ValueError), match="action spaces"):
        agent("MlpPolicy", vector_env(lambda: Other(VECTOR, space)), device="cpu")


@both_agents
def test_recurrent_and_masked_policies_are_refused_by_name(agent) -> None:
    recurrent = pytest.importorskip("sb3_contrib.common.recurrent.policies")
    maskable = pytest.importorskip("sb3_contrib.common.maskable.policies")
    for policy in (
        recurrent.RecurrentActorCriticPolicy,
        recurrent.RecurrentActorCriticCnnPolicy,
        maskable.MaskableActorCriticPolicy,
    ):
        with pytest.raises(ConfigurationError, match=policy.__name__) as raised:
            small(agent, vector_env(Toy), policy)
        assert "not supported" in str(raised.value)


@both_agents
def test_policies_of_other_algorithms_are_refused_by_name(agent) -> None:
    from stable_baselines3.dqn.policies import DQNPolicy

    with pytest.raises(ConfigurationError, match="DQNPolicy is not"):
        small(agent, vector_env(Toy), DQNPolicy)


@both_agents
def test_custom_policies_work(agent) -> None:
    class Custom(ActorCriticPolicy):
        def extract_features(self, obs, features_extractor=None):
            return super().extract_features(obs * 2, features_extractor)

    extractor = {"features_extractor_class": SharedMlp}
    model = small(agent, vector_env(Toy), Custom, policy_kwargs=extractor)
    before = parameters(model)
    assert finite(model.learn(128))
    assert not same(before, parameters(model))


@both_agents
@pytest.mark.parametrize(
    ("name", "value"),
    [("gamma", 2.0), ("gae_lambda", 5.0), ("gamma", float("nan")), ("n_steps", 0),
     ("batch_size", 12.5), ("cg_damping", -1.0)],
)  # fmt: skip
def test_settings_that_cannot_work_are_named(agent, name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=name):
        small(agent, vector_env(lambda: Toy(VECTOR, BOX)), **{name: value})
