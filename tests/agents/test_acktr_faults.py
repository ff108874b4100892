"""ACKTR's updates that fail are undone; its checkpoints and copies go on bit for bit."""

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

import npg.preconditioners.kfac
from agents import A2C, ACKTR
from agents.acting_policy import ActingPolicy
from agents.kfac_update import KFACUpdate
from agents.listening import statistics_due
from npg.curvature.kronecker import KroneckerFisher
from npg.errors import CheckpointError, NumericalError
from npg.optim.kfac_plain import Motion
from tests.agents.checkpoints import equal_states
from tests.agents.helpers import (
    BOX,
    IMAGE,
    VECTOR,
    BatchNorm,
    SharedMlp,
    SmallCnn,
    Toy,
    finite,
    parameters,
    small,
    vector_env,
)
from tests.agents.rollouts import collect
from tests.pairs import pairs

SHARED = {"policy_kwargs": {"features_extractor_class": SharedMlp}}
NORMALISED = {"policy_kwargs": {"features_extractor_class": BatchNorm}}
INTERVALS = {"statistics_interval": 3, "inverse_interval": 2, "momentum": 0.5}


def box_env(count: int = 2):
    return vector_env(lambda: Toy(VECTOR, BOX), count)


def acktr(env=None, **settings) -> ACKTR:
    return small(ACKTR, env or box_env(), **{"n_steps": 16, **INTERVALS, **settings})


def state_of(model: ACKTR):
    """All but the settings in the groups, which every update takes from the agent."""
    states = {name: o.state_dict() for name, o in model._optimizers().items()}
    kept = {n: {**state, "param_groups": None} for n, state in states.items()}
    return copy.deepcopy([kept, model.step_size, parameters(model)])


def hooks_of(policy: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in policy.modules())


# ----------------------------------------------------------------------------------- undone updates


def failing(target, name: str, at: int, error: type[BaseException], monkeypatch) -> None:
    """The call of that number does its work, and raises."""
    original, calls = getattr(target, name), []

    def fail(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append(1)
        if len(calls) == at:
            raise error
        return result

    monkeypatch.setattr(target, name, fail)


FAULTS = {
    "actor's statistics": (KroneckerFisher, "observe_by_hand", 1),
    "critic's statistics": (KroneckerFisher, "observe_by_hand", 2),
    "inverse": (npg.preconditioners.kfac.KroneckerInverse, "refresh", 1),
    "actor's step": (Motion, "take", 1),
    "measuring": (ActingPolicy, "kl", 1),
    "critic's step": (Motion, "take", 2),
    "critic's last pass": (KFACUpdate, "critic_pass", 3),
    "critic's last step": (Motion, "take", 4),
    "logging": (ACKTR, "_log", 1),
}


def before_update(updates: int) -> ACKTR:
    model = acktr(critic_steps=3)
    if updates:
        model.learn(32 * updates)
    collect(model)
    return model


@functools.cache
def without_fault(updates: int):
    """The states before and after the update."""
    model = before_update(updates)
    assert statistics_due(model.actor_optimizer)
    before = state_of(model)
    model.train()
    return before, state_of(model)


@pytest.mark.parametrize(
    *pairs(
        updates=[0, 6], fault=tuple(FAULTS), error=[KeyboardInterrupt, NumericalError, MemoryError]
    )
)
def test_a_fault_anywhere_undoes_all_of_the_update(updates, fault, error, monkeypatch) -> None:
    before, wanted = without_fault(updates)
    model = before_update(updates)
    assert equal_states(before, state_of(model))
    with monkeypatch.context() as patched:
        failing(*FAULTS[fault], error, patched)
        with pytest.raises(error):
            model.train()
    assert equal_states(before, state_of(model))
    assert not model.policy.training
    assert hooks_of(model.policy) == 0
    model.train()
    assert equal_states(wanted, state_of(model))


@pytest.mark.parametrize(
    "settings", [SHARED, {"policy_kwargs": {"features_extractor_class": BatchNorm}}]
)
def test_a_fault_undoes_shared_features_and_their_statistics(settings, monkeypatch) -> None:
    model = acktr(**settings)
    collect(model)
    before = state_of(model)
    failing(ActingPolicy, "kl", 1, KeyboardInterrupt, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        model.train()
    assert equal_states(before, state_of(model))


@pytest.mark.parametrize("settings", [{}, SHARED])
@pytest.mark.parametrize("reward", [1e25, -1e38])
def test_losses_that_are_not_finite_are_skipped_and_counted(settings, reward) -> None:
    """The second rollout explodes; the first log line comes before any update."""

    def rewards(total: int) -> float:
        return reward if 16 < total <= 32 else float(total % 3)

    model = acktr(vector_env(lambda: Toy(reward=rewards)), **settings)
    states, logged, train = [], [], model.train

    def watched() -> None:
        train()
        states.append(state_of(model))
        logged.append(model.logger.name_to_value.get("train/skipped_updates"))

    model.train = watched
    with pytest.warns(UserWarning, match="update 2 skipped"), np.errstate(over="ignore"):
        model.learn(48, log_interval=1)
    assert equal_states(states[0], states[1])
    assert not equal_states(states[1], states[2])
    assert logged == [None, 1, None]
    assert model.skipped_updates == 1
    assert model._n_updates == 3
    assert finite(model)


def test_a_first_update_that_is_skipped_can_be_logged() -> None:
    model = acktr(vector_env(lambda: Toy(reward=lambda total: 1e30)))
    with pytest.warns(UserWarning, match="update 1 skipped"):
        model.learn(48, log_interval=1)
    assert model.skipped_updates == 3


# -------------------------------------------------------------------------------------- batch norm


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("critic_steps", [1, 3])
@pytest.mark.parametrize("custom", [True, False])
def test_running_statistics_take_a_rollout_in_once(share, critic_steps, custom) -> None:
    class Custom(ActorCriticPolicy):
        def evaluate_actions(self, obs, actions):
            return super().evaluate_actions(obs, actions)

    kwargs = {"features_extractor_class": BatchNorm, "share_features_extractor": share}
    env = box_env()
    settings = {"policy_kwargs": kwargs, "critic_steps": critic_steps, "target_kl": None}
    model = acktr(
        env, policy=Custom if custom else "MlpPolicy", shared_curvature="actor", **settings
    )
    collect(model)
    observations = torch.as_tensor(model.rollout_buffer.observations.reshape(-1, 3).copy())
    model.train()
    for name in ("pi_features_extractor", "vf_features_extractor"):
        norm = getattr(model.policy, name).net[1]
        torch.testing.assert_close(norm.running_mean, 0.1 * observations.mean(0))
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * observations.var(0))
        assert norm.num_batches_tracked == 1


# ------------------------------------------------------------------------------------- checkpoints


CASES = {
    "plain": {"critic_steps": 2},
    "shared": SHARED,
    "actor's curvature": {**SHARED, "shared_curvature": "actor", "critic_steps": 2},
    "gSDE": {"use_sde": True},
}


@pytest.mark.parametrize("updates", [1, 2, 3, 4])
@pytest.mark.parametrize("case", CASES)
def test_training_goes_on_bit_for_bit_after_a_checkpoint(case, updates, tmp_path) -> None:
    """At every phase of the intervals."""
    model = acktr(**CASES[case]).learn(32 * updates)
    model.save(tmp_path / "model")
    ends = []
    for _ in range(2):
        loaded = ACKTR.load(tmp_path / "model", env=box_env(), trust=True)  # our own extractors
        assert equal_states(state_of(model), state_of(loaded))
        loaded.env.seed(5)
        ends.append(state_of(loaded.learn(32 * 4, reset_num_timesteps=False)))
    ACKTR.load(tmp_path / "model", trust=True)  # for its generators
    model.set_env(box_env())
    model.env.seed(5)
    model.learn(32 * 4, reset_num_timesteps=False)
    assert equal_states(ends[0], ends[1])
    assert equal_states(ends[0], state_of(model))


def test_arguments_of_load_count(tmp_path) -> None:
    acktr().learn(32).save(tmp_path / "model")
    loaded = ACKTR.load(tmp_path / "model", env=box_env(), damping=0.5, target_kl=0.1)
    loaded.learn(32)
    group = loaded.actor_optimizer.param_groups[0]
    assert (group["damping"], group["kl_clip"]) == (0.5, 0.2)


def test_files_of_others_are_refused(tmp_path) -> None:
    small(A2C, box_env()).save(tmp_path / "a2c")
    with pytest.raises(CheckpointError, match="another algorithm than ACKTR"):
        ACKTR.load(tmp_path / "a2c")
    acktr().save(tmp_path / "acktr")
    with pytest.raises(CheckpointError, match="another algorithm than A2C"):
        A2C.load(tmp_path / "acktr")


@pytest.mark.parametrize("updates", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_a_copy_of_the_agent_goes_on_as_the_agent_does(case, updates) -> None:
    model = acktr(**CASES[case]).learn(32 * updates)
    twin = copy.deepcopy(model)
    assert hooks_of(twin.policy) == 0
    assert {id(p) for p in twin.actor_optimizer.tensors()} <= {
        id(p) for p in twin.policy.parameters()
    }
    ends = []
    for agent in (model, twin):
        agent.set_env(box_env())
        agent.env.seed(5)
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002 - SB3 draws from it
        ends.append(state_of(agent.learn(32 * 4)))
    assert equal_states(*ends)


def test_policies_carry_no_hooks(tmp_path) -> None:
    image = vector_env(lambda: Toy(IMAGE, BOX))
    kwargs = {"features_extractor_class": SmallCnn}
    for model in (acktr(), acktr(image, policy="CnnPolicy", policy_kwargs=kwargs)):
        for _ in range(2):
            model.learn(32)
            assert hooks_of(model.policy) == 0
        model.policy.save(str(tmp_path / "policy"))
        loaded = ActorCriticPolicy.load(str(tmp_path / "policy"))
        assert hooks_of(loaded) == hooks_of(pickle.loads(pickle.dumps(model.policy))) == 0
