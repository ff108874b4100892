"""Policies that have no NumPy twin, since it would not act as they do: they act by themselves."""

import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn
from torch.nn.utils import parametrizations

from agents.acting import mirrored_layers
from tests.agents.helpers import (
    DISCRETE,
    IMAGE,
    VECTOR,
    SharedMlp,
    SmallCnn,
    agent_of,
)


@pytest.mark.parametrize(
    "method",
    [
        "forward",
        "_predict",
        "predict_values",
        "get_distribution",
        "evaluate_actions",
        "extract_features",
        "_get_action_dist_from_latent",
        "set_training_mode",
    ],
)
@pytest.mark.parametrize("where", ["class", "instance"])
def test_an_overridden_method_is_respected(method: str, where: str) -> None:
    original = getattr(ActorCriticPolicy, method)
    if where == "class":

        def override(self, *args, **kwargs):
            return original(self, *args, **kwargs)

        policy = type("Custom", (ActorCriticPolicy,), {method: override})
        model = agent_of(policy=policy)
    else:
        model = agent_of()
        assert mirrored_layers(model.policy, VECTOR) is not None
        setattr(model.policy, method, getattr(model.policy, method))
    assert mirrored_layers(model.policy, VECTOR) is None


def test_a_subclass_that_overrides_nothing_of_that_is_mirrored() -> None:
    policy = type("Custom", (ActorCriticPolicy,), {"greeting": lambda _self: "hello"})
    assert mirrored_layers(agent_of(policy=policy).policy, VECTOR) is not None


def hook(*_args) -> None:
    return None


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.action_net.register_forward_hook(hook),
        lambda p: p.action_net.register_forward_pre_hook(hook),
        lambda p: p.mlp_extractor.policy_net[0].register_full_backward_hook(hook),
        lambda p: p.register_forward_hook(hook),
        lambda p: parametrizations.weight_norm(p.action_net),
        lambda p: setattr(p.action_net, "forward", p.action_net.forward),
        lambda p: setattr(p.mlp_extractor, "forward_actor", p.mlp_extractor.forward_actor),
        lambda p: p.mlp_extractor.policy_net.append(nn.Dropout(0.5)),
        lambda p: p.mlp_extractor.policy_net.append(nn.LayerNorm(16)),
        lambda p: p.mlp_extractor.policy_net.__setitem__(1, nn.LeakyReLU()),
        lambda p: p.mlp_extractor.policy_net.insert(0, nn.Tanh()),
        lambda p: p.mlp_extractor.policy_net.append(nn.Tanh()),
        lambda p: setattr(p, "action_net", nn.Sequential(p.action_net)),
        lambda p: (
            setattr(p, "squash_output", True)
            if not isinstance(type(p).squash_output, property)
            else setattr(p, "_squash_output", True)
        ),
        lambda p: p.action_net.double(),
    ],
    ids=[
        "hook",
        "pre-hook",
        "backward hook",
        "hook on the policy",
        "parametrization",
        "patched layer",
        "patched extractor",
        "dropout",
        "layer norm",
        "leaky relu",
        "leading activation",
        "two activations",
        "sequential head",
        "squashing",
        "double",
    ],
)
def test_a_changed_policy_acts_by_itself(change) -> None:
    model = agent_of()
    assert mirrored_layers(model.policy, VECTOR) is not None
    change(model.policy)
    assert mirrored_layers(model.policy, VECTOR) is None


class CustomMlp(MlpExtractor):
    def forward_actor(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward_actor(features) * 2


class CustomExtractorPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = CustomMlp(self.features_dim, self.net_arch, self.activation_fn)


class DoublingFlatten(FlattenExtractor):
    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return super().forward(observations) * 2


@pytest.mark.parametrize(
    ("observations", "policy", "policy_kwargs"),
    [
        (VECTOR, None, {"features_extractor_class": SharedMlp}),
        (VECTOR, None, {"features_extractor_class": DoublingFlatten}),
        (VECTOR, None, {"activation_fn": nn.ELU}),
        (VECTOR, CustomExtractorPolicy, {}),
        (IMAGE, "CnnPolicy", {"features_extractor_class": SmallCnn}),
        (spaces.Discrete(4), None, {}),
        (spaces.Dict({"a": VECTOR, "b": spaces.Discrete(3)}), None, {}),
    ],
    ids=["features", "flatten", "elu", "extractor", "cnn", "discrete", "dict with discrete"],
)
def test_other_architectures_act_by_themselves(observations, policy, policy_kwargs) -> None:
    model = agent_of(observations, DISCRETE, policy, **policy_kwargs)
    assert mirrored_layers(model.policy, model.observation_space) is None
    model.learn(256)  # and they do act
