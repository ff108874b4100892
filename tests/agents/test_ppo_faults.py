"""PPO's arguments, faults and checkpoints."""

import math

import numpy as np
import pytest
import stable_baselines3

from agents import A2C, PPO, TRPO
from agents.arguments import BatchOfOneError, ClipRangeError
from npg.errors import CheckpointError, ConfigurationError
from tests.agents.checkpoints import equal_states
from tests.agents.helpers import BOX, VECTOR, Toy, finite, parameters, same, small, vector_env
from tests.agents.peers import oracle_of, train_both
from tests.agents.ppo import SMALL, ppo

# --------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "settings",
    [
        {"n_steps": 0},
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"n_epochs": 0},
        {"clip_range": 0.0},
        {"clip_range": math.inf},
        {"clip_range": "0.2"},
        {"clip_range_vf": -1},
        {"target_kl": 0.0},
        {"max_grad_norm": 0},
        {"learning_rate": -1.0},
        {"optimizer": "nothing"},
    ],
    ids=str,
)
def test_impossible_arguments_are_refused_by_name(settings) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        ppo(**settings)


def test_what_stable_baselines3_asserts_is_an_assertion_error_here() -> None:
    for settings, kind in (
        ({"clip_range_vf": -1.0}, ClipRangeError),
        ({"batch_size": 1}, BatchOfOneError),
        ({"n_steps": 1, "count": 1}, BatchOfOneError),
    ):
        with pytest.raises(AssertionError) as caught:
            ppo(**settings)
        assert caught.type is kind


def test_minibatches_of_one_are_not_normalised() -> None:
    assert finite(ppo(batch_size=1, normalize_advantage=False).learn(48))
    with pytest.warns(UserWarning, match="a truncated mini-batch of size 1 in"):
        model = ppo(batch_size=47)
    train_both(model, oracle_of(model, **{**SMALL, "batch_size": 47}))
    assert finite(model)


# ------------------------------------------------------------------------------------------ faults


def test_minibatches_that_are_not_finite_are_skipped_and_counted() -> None:
    def rewards(total: int) -> float:
        return 1e30 if 16 < total <= 32 else float(total % 3)

    env = vector_env(lambda: Toy(VECTOR, BOX, reward=rewards))
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=8, n_epochs=2, seed=0, device="cpu")
    states = []
    train = model.train
    model.train = lambda: (train(), states.append(parameters(model)))
    with pytest.warns(UserWarning, match="skipped"), np.errstate(over="ignore"):
        model.learn(48, log_interval=100)
    assert same(states[0], states[1])
    assert not same(states[1], states[2])
    assert model.skipped_updates == model.logger.name_to_value["train/skipped_updates"] == 4
    assert model._n_updates == 6
    assert finite(model)


@pytest.mark.parametrize("by_hand", [True, False], ids=["by hand", "autograd"])
def test_one_bad_sample_costs_its_minibatches_alone(by_hand, monkeypatch) -> None:
    if not by_hand:
        monkeypatch.setattr("agents.first_order.plain_actor_critic", lambda *_: None)
    model = ppo(n_epochs=2)
    model.learn(48)
    model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, 16)
    model.rollout_buffer.returns[3, 1] = math.nan
    before = parameters(model)
    with pytest.warns(UserWarning, match="skipped"):
        model.train()
    assert model.skipped_updates == 2
    assert not same(before, parameters(model))
    assert finite(model)


def test_a_stop_for_the_divergence_is_told_to_who_wants_to_know(capsys) -> None:
    for verbose in (0, 1):
        ppo(target_kl=1e-4, verbose=verbose).learn(48)
        assert ("Early stopping at step" in capsys.readouterr().out) == bool(verbose)


# ------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("optimizer", [None, "soap"])
def test_training_goes_on_bit_for_bit_after_a_checkpoint(optimizer, tmp_path) -> None:
    settings = {"optimizer": optimizer, "clip_range_vf": 0.5}
    model = ppo(**settings).learn(96)
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=vector_env(lambda: Toy(VECTOR, BOX), 3))
    assert same(parameters(model), parameters(loaded))
    assert equal_states(model.policy.optimizer.state_dict(), loaded.policy.optimizer.state_dict())
    assert loaded.clip_range(0.3) == 0.2
    assert loaded.clip_range_vf(0.3) == 0.5
    model.set_env(vector_env(lambda: Toy(VECTOR, BOX), 3))
    ends = []
    for agent in (loaded, model):
        PPO.load(tmp_path / "model")  # the generators of the file
        agent.env.seed(5)
        ends.append(parameters(agent.learn(96, reset_num_timesteps=False)))
        assert agent._n_updates == 12
    assert same(*ends)


def test_a_checkpoint_of_stable_baselines3_goes_on(tmp_path) -> None:
    env = vector_env(lambda: Toy(VECTOR, BOX), 3)
    settings = {**SMALL, "clip_range": 0.1, "clip_range_vf": 0.3}
    theirs = stable_baselines3.PPO("MlpPolicy", env, **settings, seed=0, device="cpu").learn(96)
    theirs.save(tmp_path / "theirs")
    with pytest.warns(UserWarning, match="saved by another"):
        model = PPO.load(tmp_path / "theirs", env=vector_env(lambda: Toy(VECTOR, BOX), 3))
    assert same(parameters(theirs), parameters(model))
    states = (agent.policy.optimizer.state_dict()["state"] for agent in (theirs, model))
    assert equal_states(*states)
    train_both(model, oracle_of(model, **settings))


def test_checkpoints_of_other_algorithms_are_refused(tmp_path) -> None:
    small(A2C, vector_env(Toy)).save(tmp_path / "a2c")
    small(TRPO, vector_env(Toy)).save(tmp_path / "trpo")
    small(PPO, vector_env(Toy)).save(tmp_path / "ppo")
    stable_baselines3.A2C("MlpPolicy", vector_env(Toy), device="cpu").save(tmp_path / "sb3_a2c")
    for name in ("a2c", "trpo", "sb3_a2c"):
        with pytest.raises(CheckpointError, match="another algorithm than PPO"):
            PPO.load(tmp_path / name)
    for agent in (A2C, TRPO):
        with pytest.raises(CheckpointError, match="another algorithm"):
            agent.load(tmp_path / "ppo")


def test_arguments_can_be_changed_while_loading(tmp_path) -> None:
    ppo().save(tmp_path / "model")
    model = PPO.load(
        tmp_path / "model", env=vector_env(lambda: Toy(VECTOR, BOX), 3), clip_range=0.3
    )
    assert model.clip_range(1.0) == 0.3
    assert model.learn(48).logger.name_to_value["train/clip_range"] == 0.3
