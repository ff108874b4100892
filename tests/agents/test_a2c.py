"""A2C: Stable-Baselines3's update on the same rollout, and other optimizers."""

import copy
import inspect
import math

import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from agents import A2C
from npg.errors import ConfigurationError
from npg.optim import FunctionOptimizer, names, registry
from tests.agents.a2c import SMALL, a2c
from tests.agents.helpers import (
    ACTIONS,
    BOX,
    DICTIONARY,
    DISCRETE,
    IMAGE,
    MULTI_DISCRETE,
    BatchNorm,
    SharedMlp,
    SmallCnn,
    parameters,
    same,
)
from tests.agents.peers import oracle_of, train_both
from tests.agents.rollouts import collect
from tests.pairs import pairs

SETTINGS = {
    "default": {},
    "weights": {"ent_coef": 0.1, "vf_coef": 0.7, "normalize_advantage": True},
    "unclipped": {"max_grad_norm": math.inf, "gae_lambda": 0.9, "learning_rate": 1e-4},
    "clipped": {"max_grad_norm": 1e-3},
}


@pytest.mark.parametrize(
    *pairs(actions=tuple(ACTIONS), by_hand={"by hand": True, "autograd": False}, settings=SETTINGS)
)
def test_the_update_is_that_of_stable_baselines3(actions, by_hand, settings, monkeypatch) -> None:
    if not by_hand:
        monkeypatch.setattr("agents.first_order.plain_actor_critic", lambda *_: None)
    model = a2c(ACTIONS[actions], **settings)
    before = parameters(model)
    train_both(model, oracle_of(model, **settings))
    assert not same(before, parameters(model))
    assert (model._by_hand is not None) == by_hand


@pytest.mark.parametrize(
    ("policy_kwargs", "by_hand"),
    [
        ({"net_arch": []}, True),
        ({"net_arch": {"pi": [7, 5, 3], "vf": [9]}, "activation_fn": nn.ReLU}, True),
        ({"share_features_extractor": False}, True),
        ({"activation_fn": nn.ELU}, False),
        ({"features_extractor_class": SharedMlp}, False),
        ({"features_extractor_class": BatchNorm}, False),
    ],
    ids=["linear", "relu", "unshared", "elu", "shared layer", "batch norm"],
)
@pytest.mark.parametrize("actions", [DISCRETE, BOX], ids=["discrete", "box"])
def test_other_networks(actions, policy_kwargs, by_hand) -> None:
    model = a2c(actions, policy_kwargs=policy_kwargs, ent_coef=0.01)
    train_both(model, oracle_of(model, ent_coef=0.01))
    assert (model._by_hand is not None) == by_hand


@pytest.mark.parametrize("actions", [DISCRETE, BOX, MULTI_DISCRETE], ids=["one", "box", "many"])
@pytest.mark.parametrize("share", [True, False])
def test_images_with_a_shared_extractor(actions, share) -> None:
    kwargs = {"features_extractor_class": SmallCnn, "share_features_extractor": share}
    model = a2c(actions, IMAGE, "CnnPolicy", policy_kwargs=kwargs)
    train_both(model, oracle_of(model))


def test_dictionaries() -> None:
    model = a2c(BOX, DICTIONARY, "MultiInputPolicy")
    train_both(model, oracle_of(model))
    assert model._by_hand is not None


@pytest.mark.parametrize("squash", [False, True])
def test_gsde(squash) -> None:
    settings = {"use_sde": True, "sde_sample_freq": 2}
    model = a2c(BOX, policy_kwargs={"squash_output": squash}, ent_coef=0.01, **settings)
    train_both(model, oracle_of(model, ent_coef=0.01, **settings))


def test_a_custom_policy_is_called() -> None:
    class Doubled(ActorCriticPolicy):
        def evaluate_actions(self, obs, actions):
            values, log_prob, entropy = super().evaluate_actions(obs, actions)
            return values * 2, log_prob, entropy

    model = a2c(policy=Doubled)
    train_both(model, oracle_of(model, policy=Doubled))
    assert model._by_hand is None


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.value_net.register_forward_hook(lambda *_: None),
        lambda p: p.action_net.weight.register_hook(lambda g: g * 2),
        lambda p: p.log_std.register_hook(lambda g: g * 2),
        lambda p: setattr(p, "value_net", nn.Sequential(p.value_net)),
        lambda p: setattr(p.value_net, "bias", p.action_net.bias),  # one output each
    ],
    ids=["module hook", "weight hook", "log_std hook", "another module", "tied"],
)
def test_what_could_change_the_gradients_is_noticed_between_updates(change) -> None:
    model = a2c(spaces.Box(-1, 1, (1,), np.float32))
    train_both(model, oracle_of(model), updates=1)
    assert model._by_hand is not None
    change(model.policy)
    collect(model)
    model.train()
    assert model._by_hand is None


def test_a_frozen_or_replaced_parameter_is_noticed_between_updates() -> None:
    model = a2c()
    theirs = oracle_of(model)
    train_both(model, theirs)
    for agent in (model, theirs):
        agent.policy.action_net.bias.requires_grad_(False)
        agent.policy.log_std.requires_grad_(False)
    train_both(model, theirs)
    assert model._by_hand is not None
    assert model.policy.log_std.grad is None
    for agent in (model, theirs):
        agent.policy.log_std.requires_grad_(True)
    train_both(model, theirs)


def test_stale_gradients_of_other_parameters_are_not_stepped_on() -> None:
    class Extra(ActorCriticPolicy):
        def _build(self, lr_schedule) -> None:
            self.extra = nn.Parameter(torch.ones(2))
            super()._build(lr_schedule)

    model = a2c(policy=Extra)
    theirs = oracle_of(model, policy=Extra)
    for agent in (model, theirs):
        agent.policy.extra.grad = torch.ones(2)
    train_both(model, theirs)
    assert model._by_hand is not None
    assert torch.equal(model.policy.extra, torch.ones(2))


def test_another_buffer_class_takes_the_same_update() -> None:
    model = a2c(rollout_buffer_class=RolloutBuffer)
    theirs = oracle_of(model)
    for agent in (model, theirs):
        torch.manual_seed(0)
        agent.env.seed(3)
        agent.set_env(agent.env)
        agent._last_obs = None
        agent.learn(45)
    for mine, other in zip(parameters(model), parameters(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------------- optimizers


def test_the_constructor_is_that_of_stable_baselines3_and_one_argument_more() -> None:
    ours = list(inspect.signature(A2C.__init__).parameters.values())
    theirs = list(inspect.signature(stable_baselines3.A2C.__init__).parameters.values())
    assert [(p.name, p.default) for p in ours[:-1]] == [(p.name, p.default) for p in theirs]
    assert (ours[-1].name, ours[-1].default) == ("optimizer", None)
    log_interval = inspect.signature(stable_baselines3.A2C.learn).parameters["log_interval"]
    assert inspect.signature(A2C.learn).parameters["log_interval"].default == log_interval.default


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rms_prop_eps": 0.1},
        {"use_rms_prop": False},
        {"use_rms_prop": False, "policy_kwargs": {"optimizer_class": torch.optim.SGD}},
        {"policy_kwargs": {"optimizer_class": torch.optim.AdamW}},
    ],
)
def test_the_optimizer_is_that_of_stable_baselines3(settings) -> None:
    given = copy.deepcopy(settings)
    model = a2c(**settings)
    assert settings == given
    theirs = stable_baselines3.A2C("MlpPolicy", model.env, **SMALL, **copy.deepcopy(settings))
    assert type(model.policy.optimizer) is type(theirs.policy.optimizer)
    ours, other = (agent.policy.optimizer.param_groups[0] for agent in (model, theirs))
    for name in set(ours) - {"params", "foreach", "fused"}:
        assert ours[name] == other[name], name
    train_both(model, theirs_with(model, theirs))


def theirs_with(model: A2C, theirs: stable_baselines3.A2C) -> stable_baselines3.A2C:
    theirs.policy.load_state_dict(model.policy.state_dict())
    theirs._setup_learn(100)
    return theirs


@pytest.mark.parametrize(
    "change",
    [
        lambda o: o.param_groups[0].update(momentum=0.5),
        lambda o: o.param_groups[0].update(centered=True),
        lambda o: o.param_groups[0].update(weight_decay=0.1),
        lambda o: o.param_groups[0].update(maximize=True),
        lambda o: o.param_groups[0].update(alpha=0.5, eps=0.1),
        lambda o: o.param_groups[0]["params"].pop(),
        lambda o: o.add_param_group({"params": [o.param_groups[0]["params"].pop()], "eps": 1.0}),
        lambda o: o.register_step_pre_hook(lambda *_: None),
        lambda o: torch.optim.lr_scheduler.ConstantLR(o),
        lambda o: o.state.clear(),
    ],
    ids=[
        "momentum",
        "centered",
        "decay",
        "maximize",
        "settings",
        "less",
        "groups",
        "hook",
        "scheduler",
        "state",
    ],
)
def test_what_the_optimizer_is_told_later_is_done(change) -> None:
    """Its step is taken on one vector, but it stays torch's optimizer."""
    unclipped = {"max_grad_norm": math.inf}  # SB3 clips by what the optimizer does not know, too
    model = a2c(**unclipped)
    theirs = oracle_of(model, **unclipped)
    train_both(model, theirs)
    for agent in (model, theirs):
        # What these need and did not get at the construction.
        change(agent.policy.optimizer)
        for state in agent.policy.optimizer.state.values():
            state["momentum_buffer"] = torch.zeros_like(state["square_avg"])
            state["grad_avg"] = torch.zeros_like(state["square_avg"])
    train_both(model, theirs)
    assert model._by_hand is not None


def test_hooks_of_the_optimizer_are_called() -> None:
    model = a2c()
    train_both(model, oracle_of(model))
    calls = []
    model.policy.optimizer.register_step_post_hook(lambda *_: calls.append(1))
    model.learn(45)
    assert len(calls) == 3


class Descent(torch.optim.SGD):
    """Stands for an optimizer of the library that takes gradients."""

    protocol = "gradient"

    def __init__(self, model, lr=1.0) -> None:
        super().__init__(model.parameters(), lr=lr)


class Curved(Descent):
    """Differentiates the gradient once more."""

    protocol = "hessian"

    def step(self) -> None:
        weights = [p for p in self.param_groups[0]["params"] if p.grad is not None]
        total = sum((p.grad**2).sum() for p in weights)
        self.products = torch.autograd.grad(total, weights, allow_unused=True)
        super().step()


@pytest.mark.parametrize("kind", [Descent, Curved])
def test_a_named_optimizer_is_driven_as_its_protocol_says(kind, monkeypatch) -> None:
    monkeypatch.setitem(registry._CLASSES, "named", kind)
    model = a2c(optimizer="named", learning_rate=0.1)
    theirs = stable_baselines3.A2C(
        "MlpPolicy",
        model.env,
        **SMALL,
        learning_rate=0.1,
        policy_kwargs={"optimizer_class": torch.optim.SGD},
    )
    assert type(model.policy.optimizer) is kind
    train_both(model, theirs_with(model, theirs))
    if kind is Curved:
        assert any(p is not None and p.abs().max() > 0 for p in model.policy.optimizer.products)


def test_optimizers_that_evaluate_the_objective_are_refused_with_a_remedy() -> None:
    functions = {n for n in names() if issubclass(registry._class(n), FunctionOptimizer)}
    assert {"ekfac", "kfac", "loss-flow", "natural-gradient", "newton-cg"} <= functions
    for name in functions:
        with pytest.raises(ConfigurationError, match=f"optimizer='{name}'.*optimizer=None"):
            a2c(optimizer=name)
