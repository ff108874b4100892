"""From SB3's distributions to predictions of whole actions, and telling actor from critic."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import kl_divergence, make_proba_distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from agents import TRPO, predictions
from agents.predictions import (
    Parts,
    action_dimensions,
    in_chunks,
    prediction,
    stacked,
    take,
    values_of,
)
from npg.curvature import Fisher
from npg.curvature.jacobian import GraphBlock
from npg.errors import ConfigurationError
from npg.likelihoods import joint_kl
from tests.agents.helpers import (
    ACTIONS,
    BOX,
    DICTIONARY,
    DISCRETE,
    IMAGE,
    VECTOR,
    BatchNorm,
    SharedMlp,
    SmallCnn,
    Toy,
    every_agent,
    frozen,
    joint_kl64,
    small,
    vector_env,
)


def moved(model) -> ActorCriticPolicy:
    """A copy of the policy, some way off."""
    twin = frozen(model.policy)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return twin


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("actions", ACTIONS)
def test_kl_of_a_prediction_is_that_of_whole_actions(actions: str, use_sde: bool) -> None:
    space = ACTIONS[actions]
    if use_sde and not isinstance(space, spaces.Box):
        pytest.skip("gSDE is for Box")
    env = vector_env(lambda: Toy(VECTOR, space))
    model = small(TRPO, env, use_sde=use_sde, policy_kwargs={"ortho_init": False})
    old, new = model.policy, moved(model)
    observations = torch.randn(7, 3)
    with torch.no_grad():
        p = prediction(old.get_distribution(observations))
        q = prediction(new.get_distribution(observations))
        assert p.batch_shape == (7,)
        kl = joint_kl(p, q)
    assert kl.shape == (7,)
    np.testing.assert_allclose(
        float(kl.mean()), joint_kl64(frozen(old), new, observations), rtol=1e-4
    )


@pytest.mark.parametrize("actions", ACTIONS)
def test_log_probability_of_a_prediction_is_sb3_s(actions: str) -> None:
    space = ACTIONS[actions]
    model = small(TRPO, vector_env(lambda: Toy(VECTOR, space)))
    distribution = model.policy.get_distribution(torch.randn(7, 3))
    sample = distribution.sample()
    joint = prediction(distribution)
    value = sample.reshape(7, -1) if isinstance(space, spaces.Box) else sample
    torch.testing.assert_close(joint.log_prob(value), distribution.log_prob(sample))


@pytest.mark.parametrize(
    ("space", "dimensions"),
    [
        (BOX, 2),
        (ACTIONS["matrix"], 4),
        (spaces.Box(-1, 1, (1,)), 1),
        (ACTIONS["multi-binary"], 3),
        (DISCRETE, 1),
        (ACTIONS["multi-discrete"], 1),
    ],
)
def test_dimensions_over_which_sb3_contrib_averages(space, dimensions: int) -> None:
    assert action_dimensions(space) == dimensions
    old, new = (make_proba_distribution(space) for _ in range(2))
    size = int(np.sum(getattr(old, "action_dims", getattr(old, "action_dim", 0))))
    for distribution in (old, new):
        logits = [torch.randn(5, size)]
        deviations = [torch.zeros(size)] if isinstance(space, spaces.Box) else []
        distribution.proba_distribution(*logits, *deviations)
    theirs = kl_divergence(old, new).mean()  # what sb3-contrib calls the KL divergence
    ours = joint_kl(prediction(old), prediction(new)).mean()
    torch.testing.assert_close(ours.float(), theirs * dimensions)


# ------------------------------------------------------------------------------------------ chunks


@pytest.mark.parametrize("size", [1, 50, 120, 10_000])
def test_chunks_are_all_rows_in_order(monkeypatch, size: int) -> None:
    monkeypatch.setattr(predictions, "CHUNK_BYTES", size)
    observations = torch.arange(30.0).reshape(10, 3)
    pieces = list(in_chunks(observations))
    assert max(len(piece) for piece in pieces) == min(10, max(1, size // 12))
    torch.testing.assert_close(torch.cat(pieces), observations)
    both = {"a": observations, "b": observations[:, :1] * 2}
    pieces = list(in_chunks(both))
    assert max(len(piece["a"]) for piece in pieces) == min(10, max(1, size // 16))
    for key in both:
        torch.testing.assert_close(torch.cat([piece[key] for piece in pieces]), both[key])
    model = small(TRPO, vector_env(Toy))
    whole = model.policy.predict_values(observations).flatten()
    torch.testing.assert_close(values_of(model.policy, observations), whole)


def test_rows_are_taken_and_stacked() -> None:
    table = torch.arange(6).reshape(3, 2)
    torch.testing.assert_close(take(table, torch.tensor([2, 0])), table[[2, 0]])
    both = take({"a": table, "b": -table}, torch.tensor([1]))
    assert (both["a"].tolist(), both["b"].tolist()) == ([[2, 3]], [[-2, -3]])
    rows = [{"a": np.ones(2), "b": np.zeros(1)}, {"a": np.zeros(2), "b": np.ones(1)}]
    batch = stacked(rows, torch.device("cpu"))
    assert (batch["a"].tolist(), batch["b"].tolist()) == ([[1, 1], [0, 0]], [[0], [1]])
    assert stacked([np.ones(2)], torch.device("cpu")).shape == (1, 2)


# ------------------------------------------------------------------------------------------- parts


def names_of(policy, tensors) -> set[str]:
    known = {id(p): name for name, p in policy.named_parameters()}
    return {known[id(t)] for t in tensors}


def modules_of(policy, tensors) -> set[str]:
    return {".".join(name.split(".")[:2]) for name in names_of(policy, tensors)}


def test_parts_of_an_mlp_policy() -> None:
    model = small(TRPO, vector_env(lambda: Toy(VECTOR, BOX)))
    parts = model.parts
    assert modules_of(model.policy, parts.actor) == {
        "mlp_extractor.policy_net",
        "action_net.weight",
        "action_net.bias",
        "log_std",
    }
    assert modules_of(model.policy, parts.critic) == {
        "mlp_extractor.value_net",
        "value_net.weight",
        "value_net.bias",
    }
    assert parts.shared == []


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    ("observations", "policy", "extractor"),
    [
        (VECTOR, "MlpPolicy", SharedMlp),
        (VECTOR, "MlpPolicy", BatchNorm),
        (IMAGE, "CnnPolicy", SmallCnn),
    ],
)
def test_parts_of_a_feature_extractor(observations, policy, extractor, share) -> None:
    settings = {"features_extractor_class": extractor, "share_features_extractor": share}
    env = vector_env(lambda: Toy(observations))
    model = small(TRPO, env, policy, policy_kwargs=settings)
    shared = {id(p) for p in model.parts.shared}
    extracting = {id(p) for p in model.policy.pi_features_extractor.parameters()}
    assert extracting <= {id(p) for p in model.parts.actor}
    assert shared == (extracting if share else set())


def test_parts_are_told_apart_by_the_graph_and_not_by_name() -> None:
    class Confusing(ActorCriticPolicy):
        """The net called value_net acts, that called action_net values."""

        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.action_net, self.value_net = self.value_net, nn.Linear(16, 3)
            self.critic_net = self.action_net

        def get_distribution(self, obs):
            latent = self.mlp_extractor.forward_actor(self.extract_features(obs)[0])
            return self.action_dist.proba_distribution(self.value_net(latent))

        def extract_features(self, obs, features_extractor=None):
            features = super().extract_features(obs, self.pi_features_extractor)
            return features, features

        def predict_values(self, obs):
            latent = self.mlp_extractor.forward_critic(self.extract_features(obs)[0])
            return self.critic_net(latent)

    model = Confusing(VECTOR, DISCRETE, lambda _: 0.1, net_arch=[16])
    parts = Parts(model, VECTOR)
    assert "value_net.weight" in names_of(model, parts.actor)
    assert "action_net.weight" in names_of(model, parts.critic)


@pytest.mark.parametrize("observations", [DICTIONARY, spaces.Discrete(4), IMAGE])
def test_telling_them_apart_leaves_gradients_and_mode_alone(observations) -> None:
    policy = "MultiInputPolicy" if observations is DICTIONARY else "MlpPolicy"
    extractor = {"features_extractor_class": SmallCnn} if observations is IMAGE else {}
    env = vector_env(lambda: Toy(observations))
    model = small(TRPO, env, policy, policy_kwargs=extractor)
    for training in (True, False):
        model.policy.set_training_mode(training)
        Parts(model.policy, model.observation_space)
        assert model.policy.training == training
        assert all(p.grad is None for p in model.policy.parameters())


def test_batch_norm_does_not_see_the_probe() -> None:
    extractor = {"features_extractor_class": BatchNorm}
    model = small(TRPO, vector_env(Toy), policy_kwargs=extractor)
    norm = model.policy.features_extractor.net[1]
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_var, torch.ones(3))


class ValueOfLogits(ActorCriticPolicy):
    """The value is a function of the logits: whatever the actor learns moves it."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.head = nn.Linear(3, 1)

    def predict_values(self, obs):
        return self.head(self.get_distribution(obs).distribution.logits)


class ConstantValue(ActorCriticPolicy):
    def predict_values(self, obs):
        return torch.zeros(len(obs), 1)


class ConstantActor(ActorCriticPolicy):
    def get_distribution(self, obs):
        return self.action_dist.proba_distribution(torch.zeros(len(obs), 3))


@every_agent
@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (ValueOfLogits, "cannot be told from its critic.*action_net"),
        (ConstantValue, "value depends on no trainable parameter"),
        (ConstantActor, "distribution depends on no trainable parameter"),
    ],
)
def test_policies_without_two_parts_are_refused(agent, policy, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        small(agent, vector_env(Toy), policy)


def test_frozen_parameters_belong_to_neither_part() -> None:
    class HalfFrozen(ActorCriticPolicy):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            for parameter in self.mlp_extractor.parameters():
                parameter.requires_grad_(False)

    model = small(TRPO, vector_env(Toy), HalfFrozen)
    assert names_of(model.policy, model.parts.actor) == {"action_net.weight", "action_net.bias"}
    assert names_of(model.policy, model.parts.critic) == {"value_net.weight", "value_net.bias"}
    before = [p.detach().clone() for p in model.policy.mlp_extractor.parameters()]
    model.learn(64)
    after = list(model.policy.mlp_extractor.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("num_actions", [1, 3])
def test_a_gaussian_policys_fisher_is_hand_written(num_actions):
    space = spaces.Box(-1, 1, (num_actions,), np.float32)
    policy = ActorCriticPolicy(VECTOR, space, lambda _: 1e-3)
    parts, observations = Parts(policy, VECTOR), torch.randn(4, *VECTOR.shape)
    fisher = Fisher(parts.actor, lambda: prediction(policy.get_distribution(observations)))
    assert not any(isinstance(block, GraphBlock) for block, _ in fisher.jacobian.blocks)
