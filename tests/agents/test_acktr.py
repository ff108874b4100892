"""ACKTR: its trust region, the rate that follows it, and what its settings change."""

import math

import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from agents import ACKTR
from agents.acting_policy import ActingPolicy
from agents.critics import Snapshot
from npg.errors import ConfigurationError
from tests.agents.helpers import (
    ACTIONS,
    BOX,
    DICTIONARY,
    IMAGE,
    VECTOR,
    BatchNorm,
    SharedMlp,
    SmallCnn,
    Toy,
    finite,
    frozen,
    joint_kl64,
    parameters,
    record_kl,
    same,
    short,
    small,
    vector_env,
)


def acktr(actions=BOX, observations=VECTOR, policy="MlpPolicy", count=2, **settings) -> ACKTR:
    env = vector_env(lambda: Toy(observations, actions), count)
    return small(ACKTR, env, policy, **{"n_steps": 16, **settings})


# ------------------------------------------------------------------------------------ trust region


class TwoHeads(ActorCriticPolicy):
    """Overrides what the agent could have passed by."""

    def evaluate_actions(self, obs, actions):
        return super().evaluate_actions(obs, actions)


VARIANTS = {
    **{name: {"actions": space} for name, space in ACTIONS.items()},
    "gSDE": {"use_sde": True},
    "squashed": {"use_sde": True, "policy_kwargs": {"squash_output": True}},
    "dictionary": {"observations": DICTIONARY, "policy": "MultiInputPolicy"},
    "momentum": {"momentum": 0.9},
    "shared": {"policy_kwargs": {"features_extractor_class": SharedMlp}},
    "shared, actor's curvature": {
        "policy_kwargs": {"features_extractor_class": SharedMlp},
        "shared_curvature": "actor",
        "critic_steps": 2,
    },
    "custom": {"policy": TwoHeads, "policy_kwargs": {"features_extractor_class": SharedMlp}},
    "images": {
        "observations": IMAGE,
        "policy": "CnnPolicy",
        "policy_kwargs": {"features_extractor_class": SmallCnn},
    },
    "batch norm": {"policy_kwargs": {"features_extractor_class": BatchNorm}},
}


@pytest.mark.parametrize("target_kl", [1e-4, 0.05])
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_update_goes_beyond_twice_the_target(variant: str, target_kl: float) -> None:
    """The model's clip is switched off: what holds is the measured divergence."""
    settings = {"learning_rate": 5.0, "kl_clip": 1e3, "statistics_interval": 2}
    model = acktr(**{**VARIANTS[variant], **settings}, target_kl=target_kl)
    before, divergences = parameters(model), record_kl(model)
    model.learn(32 * 6)
    assert len(divergences) == 6
    assert max(divergences) <= 2.002 * target_kl + 2e-7  # float32 inside, float64 here
    assert max(divergences) > 0.05 * target_kl
    assert not same(before, parameters(model))
    assert finite(model)


@pytest.mark.parametrize("kl_clip", [1e-5, 1e-3])
def test_the_model_bounds_what_nothing_measures(kl_clip: float) -> None:
    """½ ΔᵀFΔ of the step is the clip: with this much data the divergence is near it."""
    model = acktr(n_steps=512, target_kl=None, kl_clip=kl_clip, learning_rate=100.0)
    divergences = record_kl(model)
    model.learn(1024)
    assert divergences[0] == pytest.approx(kl_clip, rel=0.5)


def test_a_step_that_cannot_be_shortened_enough_is_taken_back(monkeypatch) -> None:
    model = acktr(n_steps=16)
    actor = [p.detach().clone() for p in model.parts.actor]
    critic = [p.detach().clone() for p in model.parts.critic]
    measured = []
    monkeypatch.setattr(ActingPolicy, "kl", lambda self: measured.append(1) or 1.0)
    model.learn(32)
    assert len(measured) == 5  # the whole step and four shorter ones
    assert same(actor, [p.detach() for p in model.parts.actor])
    assert not same(critic, [p.detach() for p in model.parts.critic])
    assert model.logger.name_to_value["train/kl_divergence"] == 0


def test_steps_are_shortened_to_the_target() -> None:
    policy = acktr().policy
    observations = torch.randn(200, 3)
    acting, start = ActingPolicy(policy, observations, None), Snapshot(policy.parameters())
    before = frozen(policy)
    with torch.no_grad():
        policy.action_net.bias.add_(0.5)  # KL = ½ (0.5² + 0.5²) = 0.25 at σ = 1
    assert acting.kl() == pytest.approx(0.25, rel=1e-5)
    kl, fraction = acting.stay_near(start, acting.kl(), 0.01)
    # ½ f² · 0.5 = 0.01
    assert fraction == pytest.approx(0.2, rel=1e-4)
    assert kl == pytest.approx(0.01, rel=1e-3)
    assert joint_kl64(before, frozen(policy), observations) == pytest.approx(0.01, rel=1e-3)
    start.restore()
    with torch.no_grad():
        policy.action_net.bias.fill_(math.nan)
    kept = [value.clone() for value in start.values]
    assert acting.stay_near(start, math.nan, 0.01) == (0.0, 0.0)
    assert same(kept, [p.detach() for p in policy.parameters()])


def test_the_rate_follows_the_measured_divergence(monkeypatch) -> None:
    """Half and twice the target are the bounds, 1.5 the factor; the first rate is the setting."""
    target = 0.01
    script = [0.004, 0.003, 0.006, 0.019, 0.005, 0.021, math.inf, 0.001]
    #         × 1.5  × 1.5  stays  stays  stays  ÷ 1.5  ÷ 1.5     × 1.5
    model = acktr(target_kl=target, learning_rate=0.2)
    rates, queue = [], iter(script)
    monkeypatch.setattr(ActingPolicy, "kl", lambda self: next(queue))
    monkeypatch.setattr(ActingPolicy, "stay_near", lambda self, start, kl, target: (kl, 1.0))
    for _ in script:
        model.learn(32, reset_num_timesteps=False)
        rates.append(model.logger.name_to_value["train/step_size"])
    wanted = np.array([1, 1.5, 2.25, 2.25, 2.25, 2.25, 1.5, 1]) * 0.2
    np.testing.assert_allclose(rates, wanted, rtol=1e-12)
    assert model.step_size == pytest.approx(0.3)


def test_a_schedule_moves_both_rates_and_may_end_at_zero() -> None:
    model = acktr(learning_rate=lambda remaining: 0.4 * remaining, target_kl=1e3, critic_steps=2)
    seen = []
    train = model.train

    def watched() -> None:
        train()
        groups = (o.param_groups[0]["lr"] for o in model._optimizers().values())
        seen.append(tuple(groups))

    model.train = watched
    model.learn(32 * 4)
    rates = np.array([0.3, 0.2, 0.1, 0.0])
    np.testing.assert_allclose([critic for _, critic in seen], rates, atol=1e-12)
    # Every divergence is below half of this target: the factor grows, times the schedule.
    np.testing.assert_allclose(
        [actor for actor, _ in seen], rates * 1.5 ** np.arange(4), atol=1e-12
    )
    assert finite(model)


# ---------------------------------------------------------------------------------------- settings


CHANGES = {
    "target_kl": 0.5,
    "kl_clip": 0.3,
    "damping": 0.7,
    "momentum": 0.4,
    "statistics_interval": 3,
    "inverse_interval": 7,
    "statistics_decay": 0.5,
}


def test_what_callbacks_change_counts_from_the_next_update() -> None:
    model = acktr().learn(32)
    for name, value in CHANGES.items():
        setattr(model, name, value)
    model.lr_schedule = lambda _: 0.125
    model.learn(32, reset_num_timesteps=False)
    for optimizer in model._optimizers().values():
        group = optimizer.param_groups[0]
        assert (group["damping"], group["momentum"], group["kl_clip"]) == (0.7, 0.4, 0.3)
        assert (optimizer.statistics_interval, optimizer.inverse_interval) == (3, 7)
        assert optimizer.statistics_decay == 0.5
    assert model.critic_optimizer.param_groups[0]["lr"] == 0.125
    model.kl_clip = None
    model.learn(32, reset_num_timesteps=False)
    assert model.actor_optimizer.param_groups[0]["kl_clip"] == 1.0  # twice the target


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("target_kl", "kl_clip", "damping") for value in (0, -1, "1")),
        *((name, value) for name in ("momentum", "statistics_decay") for value in (-0.1, 1, "1")),
        *(
            (name, value)
            for name in ("statistics_interval", "inverse_interval", "critic_steps")
            for value in (0, 1.5)
        ),
        ("damping", None),
        ("kl_clip", math.inf),
        ("shared_curvature", "both"),
    ],
)
def test_bad_settings_are_named_early_and_late(name: str, value) -> None:
    with pytest.raises(ConfigurationError, match=name):
        acktr(**{name: value})
    model = acktr().learn(32)
    before = parameters(model)
    setattr(model, name, value)
    with pytest.raises(ConfigurationError, match=name):
        model.learn(32)
    assert same(before, parameters(model))


@pytest.mark.parametrize("rate", [-1.0, math.nan])
def test_bad_schedules_are_named(rate: float) -> None:
    model = acktr(learning_rate=lambda _: 0.1)
    model.lr_schedule = lambda _: rate
    with pytest.raises(ConfigurationError, match="learning_rate"):
        model.learn(32)


def test_further_critic_steps_cannot_move_shared_features() -> None:
    kwargs = {"features_extractor_class": SharedMlp}
    with pytest.raises(ConfigurationError, match=r'critic_steps=2.*shared_curvature="actor"'):
        acktr(critic_steps=2, policy_kwargs=kwargs)
    model = acktr(policy_kwargs=kwargs).learn(32)
    model.critic_steps = 2
    with pytest.raises(ConfigurationError, match="critic_steps=2"):
        model.learn(32)


def test_whose_curvature_the_shared_features_have() -> None:
    kwargs = {"features_extractor_class": SharedMlp}
    joint = acktr(policy_kwargs=kwargs)
    everything = {id(p) for p in joint.policy.parameters()}
    assert {id(p) for p in joint.actor_optimizer.tensors()} == everything
    assert joint.critic_optimizer is None
    actor = acktr(policy_kwargs=kwargs, shared_curvature="actor", critic_steps=3)
    assert [id(p) for p in actor.actor_optimizer.tensors()] == [id(p) for p in actor.parts.actor]
    shared = {id(p) for p in actor.parts.shared}
    own = {id(p) for p in actor.critic_optimizer.tensors()}
    assert not own & shared
    assert own | {id(p) for p in actor.actor_optimizer.tensors()} == {
        id(p) for p in actor.policy.parameters()
    }
    # The joint curvature of the shared layer is the sum of what both heads send back.
    signals = []
    for model in (joint, actor):
        model.learn(32)
        weight = model.parts.shared[0]
        blocks = {b.parameters[0]: b for b in model.actor_optimizer.fisher.blocks}
        signals.append(blocks[weight].moments[1].trace())
    assert signals[0] > signals[1]


def test_arguments_that_others_have_are_first() -> None:
    model = ACKTR("MlpPolicy", vector_env(Toy), 0.1, 8, 0.9, 0.8, 0.01, 0.3, **short_of())
    assert (model.learning_rate, model.n_steps, model.gamma) == (0.1, 8, 0.9)
    assert (model.gae_lambda, model.ent_coef, model.vf_coef) == (0.8, 0.01, 0.3)


def short_of() -> dict:
    settings = short(ACKTR)
    del settings["n_steps"]
    return settings
