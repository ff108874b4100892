"""The trust region as seen from outside the agent, and TRPO's own arguments."""

import warnings

import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from agents import TRPO
from npg.errors import ConfigurationError
from npg.steps import TrustRegion
from tests.agents.helpers import (
    ACTIONS,
    BOX,
    DICTIONARY,
    DISCRETE,
    IMAGE,
    MULTI_BINARY,
    MULTI_DISCRETE,
    VECTOR,
    BatchNorm,
    SharedMlp,
    Shifted,
    SmallCnn,
    Toy,
    parameters,
    record_kl,
    same,
    small,
    vector_env,
)
from tests.pairs import pairs

# (observation space, action space, policy, policy_kwargs, other settings)
CASES = {
    "discrete": (VECTOR, DISCRETE, "MlpPolicy", {}, {}),
    "box": (VECTOR, BOX, "MlpPolicy", {}, {}),
    "matrix": (VECTOR, ACTIONS["matrix"], "MlpPolicy", {"activation_fn": nn.ReLU}, {}),
    "multi-discrete": (VECTOR, MULTI_DISCRETE, "MlpPolicy", {}, {}),
    "multi-binary": (VECTOR, MULTI_BINARY, "MlpPolicy", {}, {}),
    "dict": (DICTIONARY, BOX, "MultiInputPolicy", {}, {}),
    "gsde": (VECTOR, BOX, "MlpPolicy", {}, {"use_sde": True, "sde_sample_freq": 8}),
    "shared-cnn": (IMAGE, DISCRETE, "CnnPolicy", {"features_extractor_class": SmallCnn}, {}),
    "shared-mlp": (VECTOR, BOX, "MlpPolicy", {"features_extractor_class": SharedMlp}, {}),
    "subsampled": (VECTOR, BOX, "MlpPolicy", {}, {"sub_sampling_factor": 4}),
    "dense": (VECTOR, BOX, "MlpPolicy", {}, {"curvature": "fisher-dense"}),
    "kfac": (VECTOR, BOX, "MlpPolicy", {}, {"curvature": "kfac"}),
    "kfac-discrete": (VECTOR, MULTI_DISCRETE, "MlpPolicy", {}, {"curvature": "kfac"}),
    "kfac-cnn": (
        IMAGE,
        DISCRETE,
        "CnnPolicy",
        {"features_extractor_class": SmallCnn},
        {"curvature": "kfac"},
    ),
    "preconditioned": (VECTOR, BOX, "MlpPolicy", {}, {"cg_preconditioner": "kfac"}),
    "preconditioned-mlp": (
        VECTOR,
        BOX,
        "MlpPolicy",
        {"features_extractor_class": SharedMlp},
        {"cg_preconditioner": "kfac"},
    ),
    "bold": (VECTOR, MULTI_DISCRETE, "MlpPolicy", {}, {"target_kl": 0.3, "cg_damping": 1e-4}),
}
LIVELY = {"n_critic_updates": 8, "learning_rate": 0.02}  # a critic that would break a weak bound


# A critic can move the policy where they share layers; elsewhere the cases take turns.
CRITICS = ("adam", "gauss-newton")
WITH_CRITICS = [
    (case, critic)
    for i, (case, (*_, policy_kwargs, _)) in enumerate(CASES.items())
    for critic in (CRITICS if "features_extractor_class" in policy_kwargs else CRITICS[i % 2 :][:1])
]


@pytest.mark.parametrize(("case", "critic"), WITH_CRITICS)
def test_kl_of_every_update_is_within_the_target(case: str, critic: str) -> None:
    observations, actions, policy, policy_kwargs, settings = CASES[case]
    env = vector_env(lambda: Toy(observations, actions), 2)
    settings = {"n_steps": 32, "critic": critic, "policy_kwargs": policy_kwargs, **settings}
    agent = small(TRPO, env, policy, **LIVELY, **settings)
    divergences = record_kl(agent)
    agent.learn(64 * 5)
    assert len(divergences) == 5
    assert max(divergences) <= agent.target_kl
    # The bound is no use if nothing moves: the line search loses at most a few factors of 0.8.
    assert np.median(divergences) > 0.3 * agent.target_kl


@pytest.mark.parametrize(
    *pairs(
        share={"shared": True, "separate": False},
        actions={"box": BOX, "discrete": DISCRETE},
        critic=["adam", "gauss-newton"],
        target_kl=[0.01, 0.001],
    )
)
def test_kl_bound_holds_where_batch_norm_moves(actions, critic, target_kl, share) -> None:
    agent = small(
        TRPO,
        vector_env(lambda: Shifted(VECTOR, actions)),
        critic=critic,
        target_kl=target_kl,
        policy_kwargs={
            "features_extractor_class": BatchNorm,
            "ortho_init": False,
            "share_features_extractor": share,
        },
        **LIVELY,
    )
    with torch.no_grad():
        agent.policy.action_net.weight.mul_(3)  # a policy that reacts to its features
    divergences = record_kl(agent)
    agent.learn(64 * 3)
    assert len(divergences) == 3
    assert max(divergences) <= target_kl


@pytest.mark.parametrize("actions", [BOX, MULTI_BINARY], ids=["box", "multi-binary"])
def test_per_dimension_bounds_the_joint_kl_by_the_dimensions(actions) -> None:
    dimensions = actions.shape[0]
    settings = {"kl_reduction": "per-dimension", "target_kl": 0.02}
    agent = small(TRPO, vector_env(lambda: Toy(VECTOR, actions)), **settings)
    divergences = record_kl(agent)
    agent.learn(64 * 4)
    assert max(divergences) <= dimensions * 0.02
    assert max(divergences) > 0.02


@pytest.mark.parametrize("actions", ACTIONS)
def test_per_dimension_equals_joint_with_scaled_target_and_damping(actions: str) -> None:
    space = ACTIONS[actions]
    # sb3-contrib's KL of MultiDiscrete is a sum already, that of a Discrete one number
    dimensions = {"box": 2, "matrix": 4, "multi-binary": 3}.get(actions, 1)

    def trained(**settings) -> list[torch.Tensor]:
        agent = small(TRPO, vector_env(lambda: Toy(VECTOR, space)), **settings)
        return parameters(agent.learn(64 * 2))

    per_dimension = trained(kl_reduction="per-dimension", target_kl=0.01, cg_damping=0.05)
    scaled = trained(target_kl=0.01 * dimensions, cg_damping=0.05 * dimensions)
    assert same(per_dimension, scaled)
    if dimensions > 1:
        assert not same(per_dimension, trained(target_kl=0.01, cg_damping=0.05))


# ------------------------------------------------------------------- the warning about the joint KL


@pytest.fixture
def _unwarned(monkeypatch) -> None:
    monkeypatch.setattr(TRPO, "_warned_about_joint_kl", False)


def joint_warnings(action_space, times: int = 1, **settings) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            TRPO("MlpPolicy", vector_env(lambda: Toy(VECTOR, action_space)), **settings)
    return [str(w.message) for w in caught if "joint" in str(w.message)]


@pytest.mark.usefixtures("_unwarned")
def test_one_warning_about_the_joint_kl_says_what_to_pass() -> None:
    messages = joint_warnings(BOX, times=3, target_kl=0.015)
    assert len(messages) == 1
    assert "target_kl=0.03" in messages[0]
    assert 'kl_reduction="per-dimension"' in messages[0]


@pytest.mark.usefixtures("_unwarned")
@pytest.mark.parametrize("space", [DISCRETE, MULTI_DISCRETE], ids=["discrete", "multi-discrete"])
def test_no_warning_where_both_meanings_agree(space) -> None:
    assert joint_warnings(space) == []


@pytest.mark.usefixtures("_unwarned")
@pytest.mark.parametrize("reduction", ["joint", "per-dimension"])
def test_no_warning_where_the_choice_was_made(reduction: str) -> None:
    assert joint_warnings(BOX, kl_reduction=reduction) == []


# ------------------------------------------------------------------------------- the line search


@pytest.mark.parametrize("critic", ["adam", "gauss-newton"])
def test_failed_line_search_leaves_the_actor_bit_for_bit(monkeypatch, critic: str) -> None:
    agent = small(TRPO, vector_env(lambda: Toy(VECTOR, BOX)), critic=critic)
    policy = agent.policy
    actor = [
        p for m in (policy.mlp_extractor.policy_net, policy.action_net) for p in m.parameters()
    ]
    actor.append(policy.log_std)
    before, everything = [p.detach().clone() for p in actor], parameters(agent)
    original, seen = TrustRegion.search, []

    def hopeless(self, tensors, direction, loss_before, evaluate):
        if self.target_kl == agent.target_kl:  # the actor's; Gauss–Newton searches without a bound
            loss_before = -1e9
            moved = evaluate

            def evaluate():
                seen.append([p.detach().clone() for p in actor])
                return moved()

        return original(self, tensors, direction, loss_before, evaluate)

    monkeypatch.setattr(TrustRegion, "search", hopeless)
    agent.learn(64)
    assert len(seen) == agent.line_search_max_iter
    assert not any(same(before, trial) for trial in seen)
    assert same(before, [p.detach() for p in actor])
    assert not same(everything, parameters(agent))  # the critic did learn
    assert agent.logger.name_to_value["train/is_line_search_success"] == 0
    assert agent.logger.name_to_value["train/kl_divergence_loss"] == 0


def test_line_search_arguments_reach_the_search(monkeypatch) -> None:
    regions = []
    original = TrustRegion.search

    def spied(self, *args):
        regions.append(self)
        return original(self, *args)

    monkeypatch.setattr(TrustRegion, "search", spied)
    settings = {"line_search_shrinking_factor": 0.37, "line_search_max_iter": 3, "target_kl": 0.02}
    small(TRPO, vector_env(Toy), **settings).learn(64)
    assert regions == [TrustRegion(0.02, 0.37, 3)]


@pytest.mark.parametrize(
    ("annealing", "shares"),
    [
        (0.0, [1, 1, 1, 1, 1]),
        (0.5, [1, 1, 1, 0.5, 0.1]),  # 2 x what remains, from the half on; a tenth is the floor
        (1.0, [1, 0.75, 0.5, 0.25, 0.1]),
    ],
)
def test_annealing_shrinks_the_trust_region_towards_the_end(annealing, shares) -> None:
    agent = small(TRPO, vector_env(Toy), kl_annealing=annealing, target_kl=0.02)
    targets = []
    for remaining in (1.0, 0.75, 0.5, 0.25, 0.0):
        agent._current_progress_remaining = remaining
        targets.append(agent._step_rule()["target_kl"])
    assert targets == pytest.approx([0.02 * share for share in shares])


def test_annealed_updates_stay_within_what_is_left_of_the_target() -> None:
    agent = small(TRPO, vector_env(Toy), kl_annealing=1.0, n_steps=64)
    divergences = record_kl(agent)
    agent.learn(64 * 8)
    # Update k of 8 sees 1 - k/8 of the training before it, so is the bound.
    bounds = [agent.target_kl * max(0.1, 1 - k / 8) for k in range(1, 9)]
    assert all(kl <= bound for kl, bound in zip(divergences, bounds, strict=True))
    assert divergences[-1] > 0


@pytest.mark.parametrize(
    "settings", [{"curvature": "kfac"}, {"cg_preconditioner": "kfac"}], ids=["instead", "beside"]
)
def test_kronecker_factors_hook_the_policy_during_the_update_alone(settings, tmp_path) -> None:
    """A hook would keep rollouts from passing the modules by; factors are in the checkpoint."""
    agent = small(TRPO, vector_env(lambda: Toy(VECTOR, BOX)), n_steps=64, **settings)
    agent.learn(64 * 2)
    assert not any(m._forward_hooks for m in agent.policy.modules())
    agent.save(tmp_path / "agent")
    loaded = TRPO.load(tmp_path / "agent")
    saved, restored = (
        [block.moments for block in each.actor_optimizer.factors.blocks] for each in (agent, loaded)
    )
    assert all(
        updates == 2 for updates in (b.updates for b in loaded.actor_optimizer.factors.blocks)
    )
    assert len(saved) == 3  # two layers and log_std
    for first, second in zip(saved, restored, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"target_kl": 0.0}, "target_kl"),
        ({"target_kl": -0.01}, "target_kl"),
        ({"target_kl": float("nan")}, "target_kl"),
        ({"target_kl": float("inf")}, "target_kl"),
        ({"target_kl": None}, "target_kl"),
        ({"kl_reduction": "mean"}, "kl_reduction"),
        ({"kl_annealing": 1.5}, "kl_annealing"),
        ({"kl_annealing": -0.1}, "kl_annealing"),
        ({"cg_preconditioner": "jacobi"}, "cg_preconditioner"),
        ({"cg_preconditioner": "kfac", "curvature": "kfac"}, "cg_preconditioner"),
        ({"line_search_shrinking_factor": 1.0}, "line_search_shrinking_factor"),
        ({"line_search_max_iter": 0}, "line_search_max_iter"),
    ],
)
def test_impossible_arguments_are_refused_by_name(settings: dict, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as raised:
        small(TRPO, vector_env(Toy), **settings)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("actions", [DISCRETE, BOX], ids=["discrete", "box"])
def test_with_its_settings_the_policy_step_is_that_of_sb3_contrib(actions) -> None:
    """The same rollout moves the same policy to the same place."""
    contrib = pytest.importorskip("sb3_contrib").TRPO
    settings = {"n_steps": 64, "seed": 0, "target_kl": 0.02, "n_critic_updates": 1, "device": "cpu"}
    peer = contrib("MlpPolicy", vector_env(lambda: Toy(VECTOR, actions)), **settings)
    ours = TRPO(
        "MlpPolicy",
        vector_env(lambda: Toy(VECTOR, actions)),
        kl_reduction="per-dimension",
        step_norm="damped",
        **settings,
    )
    for _ in range(3):
        _, callback = peer._setup_learn(64)
        peer.collect_rollouts(peer.env, callback, peer.rollout_buffer, 64)
        ours.policy.load_state_dict(peer.policy.state_dict())
        ours.rollout_buffer.reset()
        for name in ("observations", "actions", "log_probs", "advantages", "returns", "values"):
            getattr(ours.rollout_buffer, name)[...] = getattr(peer.rollout_buffer, name)
        ours.rollout_buffer.pos, ours.rollout_buffer.full = 64, True
        ours._logger = peer.logger
        before = [p.detach().clone() for p in ours.parts.actor]
        peer.train()
        ours.train()
        named = dict(peer.policy.named_parameters())
        names = {id(p): name for name, p in ours.policy.named_parameters()}
        for p, start in zip(ours.parts.actor, before, strict=True):
            step, expected = p.detach() - start, named[names[id(p)]].detach() - start
            assert expected.abs().max() > 1e-4
            torch.testing.assert_close(
                step, expected, rtol=2e-3, atol=1e-3 * float(expected.abs().max())
            )


def test_signature_begins_with_that_of_sb3_contrib() -> None:
    import inspect

    peer = pytest.importorskip("sb3_contrib").TRPO
    ours = list(inspect.signature(TRPO.__init__).parameters.values())
    theirs = list(inspect.signature(peer.__init__).parameters.values())
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [
        (p.name, p.default) for p in theirs
    ]
    assert TRPO.policy_aliases["MlpPolicy"] is ActorCriticPolicy
