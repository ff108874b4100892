"""PPO: Stable-Baselines3's update on the same rollout, and other optimizers."""

import inspect
import math

import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from torch import nn

from agents import PPO
from agents.actor_critic import ActorCritic
from agents.losses import ClippedSurrogate
from agents.rollout import Batch, batch
from npg.errors import ConfigurationError
from npg.optim import FunctionOptimizer, names, registry
from tests.agents.helpers import (
    ACTIONS,
    BOX,
    DICTIONARY,
    DISCRETE,
    IMAGE,
    BatchNorm,
    SharedMlp,
    SmallCnn,
    double_observations,
    finite,
    parameters,
    same,
)
from tests.agents.peers import oracle_of, train_both
from tests.agents.ppo import SMALL, ppo
from tests.agents.rollouts import collect
from tests.pairs import pairs

VALUE_CLIP = 1.0  # so far do some values move, and others do not


def train_with_oracle(model: PPO, **settings) -> None:
    train_both(model, oracle_of(model, **{**SMALL, **settings}))


SETTINGS = {
    "default": {},
    "weights": {"ent_coef": 0.1, "vf_coef": 0.7, "normalize_advantage": False},
    "unclipped gradient": {"max_grad_norm": math.inf, "gae_lambda": 0.8},
    "clipped gradient": {"max_grad_norm": 1e-2},
    "clipped value": {"clip_range_vf": VALUE_CLIP, "clip_range": 0.05},
    "schedules": {"clip_range": lambda left: 0.1 * left, "clip_range_vf": lambda left: 0.1},
    "target": {"target_kl": 1e-3},
    "whole rollout": {"batch_size": 100},
}


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize(
    *pairs(actions=tuple(ACTIONS), by_hand={"by hand": True, "autograd": False}, settings=SETTINGS)
)
def test_the_update_is_that_of_stable_baselines3(actions, by_hand, settings, monkeypatch) -> None:
    if not by_hand:
        monkeypatch.setattr("agents.first_order.plain_actor_critic", lambda *_: None)
    model = ppo(ACTIONS[actions], **settings)
    before = parameters(model)
    train_with_oracle(model, **settings)
    assert not same(before, parameters(model))
    assert (model._by_hand is not None) == by_hand


def test_the_oracle_meets_what_it_is_an_oracle_of() -> None:
    """The settings above do clip ratios and values, and stop early."""
    model = ppo(clip_range=0.05)
    train_with_oracle(model, clip_range=0.05)
    assert 0.1 < model.logger.name_to_value["train/clip_fraction"] < 0.9
    assert model._n_updates == 9
    stopped = ppo(target_kl=1e-3)
    train_with_oracle(stopped, target_kl=1e-3)
    assert stopped._n_updates < 9
    observations = torch.as_tensor(model.rollout_buffer.observations.reshape(-1, 3))
    values = model.policy.predict_values(observations).detach().flatten()
    moved = values - torch.as_tensor(model.rollout_buffer.values.reshape(-1))
    assert 0.05 < (moved.abs() > VALUE_CLIP).float().mean() < 0.95


@pytest.mark.parametrize("clip_range_vf", [None, 0.1])
@pytest.mark.parametrize("actions", ACTIONS)
def test_gradients_by_hand_are_those_of_autograd_in_double(
    actions, clip_range_vf, monkeypatch
) -> None:
    monkeypatch.setattr("agents.plain_actor_critic.plain_features", lambda _, x: x.flatten(1))
    model = ppo(ACTIONS[actions], ent_coef=0.1, clip_range=0.1, clip_range_vf=clip_range_vf)
    collect(model)
    policy = model.policy.double()
    samples = batch(model.rollout_buffer, model.action_space, model.device)
    columns = (c.double() if c.is_floating_point() else c for c in samples[:6])
    samples = Batch(*columns)
    with torch.no_grad():  # the policy moves on
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model._prepare(len(samples.returns))
    assert model._by_hand is not None
    results = []
    for kind in (PPO, ActorCritic):
        objective = model._objective(samples)
        with double_observations():
            losses, norm = kind._gradients(model, samples, objective)
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
        results.append((torch.tensor([*losses, norm], dtype=torch.float64), gradient))
        assert 0.1 < float(objective.policy.clip_fraction) < 0.9
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("policy_kwargs", "by_hand"),
    [
        ({"net_arch": []}, True),
        ({"net_arch": {"pi": [7, 5, 3], "vf": [9]}, "activation_fn": nn.ReLU}, True),
        ({"share_features_extractor": False}, True),
        ({"activation_fn": nn.ELU}, False),
        ({"features_extractor_class": SharedMlp}, False),
        ({"features_extractor_class": BatchNorm}, False),
        ({"optimizer_class": torch.optim.RMSprop}, True),
        ({"optimizer_class": torch.optim.AdamW}, True),
        ({"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}}, True),
    ],
    ids=[
        "linear",
        "relu",
        "unshared",
        "elu",
        "shared layer",
        "batch norm",
        "rmsprop",
        "adamw",
        "sgd",
    ],
)
@pytest.mark.parametrize("actions", [DISCRETE, BOX], ids=["discrete", "box"])
def test_other_networks_and_optimizers(actions, policy_kwargs, by_hand) -> None:
    model = ppo(actions, policy_kwargs=policy_kwargs, ent_coef=0.01)
    train_with_oracle(model, ent_coef=0.01)
    assert (model._by_hand is not None) == by_hand


@pytest.mark.parametrize("share", [True, False])
def test_images(share) -> None:
    kwargs = {"features_extractor_class": SmallCnn, "share_features_extractor": share}
    train_with_oracle(ppo(DISCRETE, IMAGE, "CnnPolicy", policy_kwargs=kwargs))


@pytest.mark.parametrize("clip_range_vf", [None, 0.05])
def test_dictionaries(clip_range_vf) -> None:
    model = ppo(BOX, DICTIONARY, "MultiInputPolicy", clip_range_vf=clip_range_vf)
    train_with_oracle(model, clip_range_vf=clip_range_vf)
    assert model._by_hand is not None


@pytest.mark.parametrize("squash", [False, True])
def test_gsde(squash) -> None:
    settings = {"use_sde": True, "sde_sample_freq": 2, "ent_coef": 0.01}
    model = ppo(BOX, policy_kwargs={"squash_output": squash}, **settings)
    train_with_oracle(model, **settings)


def test_another_buffer_class_takes_the_same_update() -> None:
    ends = []
    for settings in ({"rollout_buffer_class": RolloutBuffer}, {}):
        model = ppo(**settings) if settings else oracle_of(ppo(), **SMALL)
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - SB3 draws from it
        model.env.seed(3)
        model.learn(96)
        ends.append(parameters(model))
    for mine, other in zip(*ends, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_a_rollout_that_a_callback_has_read_is_still_learned_from() -> None:
    ends = []
    for read in (False, True):
        model = ppo()
        collect(model)
        if read:
            next(iter(model.rollout_buffer.get(8)))
        np.random.seed(0)  # noqa: NPY002 - SB3 draws from it
        model.train()
        ends.append(parameters(model))
    for first, second in zip(*ends, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------------- the losses


def test_the_surrogate_by_hand() -> None:
    # Ratios 0.5 and 1.5 outside of [0.8, 1.2], 1.1 inside; advantages 1 and −2. The lesser of r A
    # and clip(r) A: 0.5, 1.2 (clipped), 1.1, −1.6 (clipped), −3, −2.2; slopes −r A / 6.
    ratios = torch.tensor([0.5, 1.5, 1.1, 0.5, 1.5, 1.1], dtype=torch.float64)
    advantages = torch.tensor([1.0, 1.0, 1.0, -2.0, -2.0, -2.0], dtype=torch.float64)
    surrogate = ClippedSurrogate(advantages, torch.zeros_like(ratios), 0.2)
    loss, slope = surrogate(ratios.log())
    assert float(loss) == pytest.approx((-0.5 - 1.2 - 1.1 + 1.6 + 3 + 2.2) / 6)
    expected = [-0.5 / 6, 0, -1.1 / 6, 0, 3 / 6, 2.2 / 6]
    torch.testing.assert_close(slope, torch.tensor(expected, dtype=torch.float64))
    assert float(surrogate.clip_fraction) == pytest.approx(4 / 6)
    assert float(surrogate.approx_kl) == pytest.approx(float((ratios - 1 - ratios.log()).mean()))


# -------------------------------------------------------------------------------------- optimizers


def test_the_constructor_is_that_of_stable_baselines3_and_one_argument_more() -> None:
    ours = list(inspect.signature(PPO.__init__).parameters.values())
    theirs = list(inspect.signature(stable_baselines3.PPO.__init__).parameters.values())
    assert [(p.name, p.default) for p in ours[:-1]] == [(p.name, p.default) for p in theirs]
    assert (ours[-1].name, ours[-1].default) == ("optimizer", None)
    assert ours[-1].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", names())
def test_every_optimizer_trains_or_is_refused_with_a_remedy(name) -> None:
    if issubclass(registry._class(name), FunctionOptimizer) or name == "sophia-g":
        with pytest.raises(ConfigurationError, match=f"optimizer='{name}'.*optimizer=None"):
            ppo(optimizer=name)
        return
    model = ppo(optimizer=name)
    before = parameters(model)
    model.learn(96)
    assert not same(before, parameters(model))
    assert finite(model)
    assert isinstance(model.policy.optimizer, registry._class(name))
