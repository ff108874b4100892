"""A2C's arguments, faults and checkpoints."""

import copy
import math
import warnings

import numpy as np
import pytest
import stable_baselines3
import torch

from agents import A2C, TRPO
from agents.arguments import BatchOfOneError
from npg.errors import CheckpointError, ConfigurationError
from tests.agents.a2c import SMALL, a2c
from tests.agents.checkpoints import equal_states
from tests.agents.helpers import (
    BOX,
    DISCRETE,
    VECTOR,
    BatchNorm,
    SharedMlp,
    Toy,
    finite,
    parameters,
    same,
    small,
    vector_env,
)
from tests.agents.peers import oracle_of, train_both

# --------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "settings",
    [
        {"n_steps": 0},
        {"n_steps": 2.5},
        {"gamma": 1.1},
        {"gae_lambda": -0.1},
        {"ent_coef": math.nan},
        {"vf_coef": -1},
        {"max_grad_norm": 0},
        {"max_grad_norm": math.nan},
        {"rms_prop_eps": -1e-5},
        {"learning_rate": -1.0},
        {"learning_rate": math.nan},
        {"optimizer": "nothing"},
        {"optimizer": torch.optim.Adam},
    ],
    ids=str,
)
def test_impossible_arguments_are_refused_by_name(settings) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        a2c(**settings)


def test_one_sample_cannot_be_normalised() -> None:
    with pytest.raises(BatchOfOneError, match="n_envs"):
        a2c(n_steps=1, count=1, normalize_advantage=True)
    assert finite(a2c(n_steps=1, count=1).learn(10))


# ------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize("extractor", [None, SharedMlp, BatchNorm])
@pytest.mark.parametrize("actions", [DISCRETE, BOX], ids=["discrete", "box"])
def test_an_update_that_is_not_finite_is_skipped_and_counted(actions, extractor) -> None:
    kwargs = {} if extractor is None else {"features_extractor_class": extractor}

    def rewards(total: int) -> float:
        return 1e30 if 5 < total <= 10 else float(total % 3)

    env = vector_env(lambda: Toy(VECTOR, actions, reward=rewards))
    model = A2C("MlpPolicy", env, **SMALL, policy_kwargs=kwargs)
    states, optimizer = [], []
    train = model.train

    def watched() -> None:
        train()
        states.append(parameters(model))
        optimizer.append(copy.deepcopy(model.policy.optimizer.state_dict()["state"]))

    model.train = watched
    with pytest.warns(UserWarning, match="update 2 skipped"), np.errstate(over="ignore"):
        model.learn(15)
    assert same(states[0], states[1])
    assert equal_states(optimizer[0], optimizer[1])
    assert not same(states[1], states[2])
    assert model.skipped_updates == model.logger.name_to_value["train/skipped_updates"] == 1
    assert model._n_updates == 3
    assert finite(model)


def test_one_warning_for_many_skips() -> None:
    env = vector_env(lambda: Toy(reward=lambda _: 1e30))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = A2C("MlpPolicy", env, **SMALL).learn(15)
    assert len([w for w in caught if "skipped" in str(w.message)]) == 1
    assert model.skipped_updates == 3


# ------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("kwargs", [{}, {"features_extractor_class": SharedMlp}])
@pytest.mark.parametrize("rms_prop", [True, False])
def test_training_goes_on_bit_for_bit_after_a_checkpoint(kwargs, rms_prop, tmp_path) -> None:
    settings = {"policy_kwargs": kwargs, "use_rms_prop": rms_prop}
    model = a2c(**settings).learn(60)
    model.save(tmp_path / "model")
    ends = []
    for _ in range(2):
        env = vector_env(lambda: Toy(VECTOR, BOX), 3)
        loaded = A2C.load(tmp_path / "model", env=env, trust=True)  # our own extractor
        assert same(parameters(model), parameters(loaded))
        assert equal_states(
            model.policy.optimizer.state_dict(), loaded.policy.optimizer.state_dict()
        )
        loaded.env.seed(5)
        ends.append(parameters(loaded.learn(60, reset_num_timesteps=False)))
        assert loaded._n_updates == 8
    # The agent that was never saved, given the generators of the file and a fresh episode.
    A2C.load(tmp_path / "model", trust=True)
    model.set_env(vector_env(lambda: Toy(VECTOR, BOX), 3))
    model.env.seed(5)
    model.learn(60, reset_num_timesteps=False)
    assert same(ends[0], ends[1])
    assert same(ends[0], parameters(model))


def test_a_checkpoint_of_stable_baselines3_goes_on(tmp_path) -> None:
    env = vector_env(lambda: Toy(VECTOR, BOX), 3)
    theirs = stable_baselines3.A2C("MlpPolicy", env, **SMALL, ent_coef=0.25).learn(60)
    theirs.save(tmp_path / "theirs")
    with pytest.warns(UserWarning, match="saved by another"):
        model = A2C.load(tmp_path / "theirs", env=vector_env(lambda: Toy(VECTOR, BOX), 3))
    assert model.ent_coef == 0.25
    assert same(parameters(theirs), parameters(model))
    states = (agent.policy.optimizer.state_dict()["state"] for agent in (theirs, model))
    assert equal_states(*states)
    train_both(model, oracle_of(model, ent_coef=0.25))


def test_checkpoints_of_other_algorithms_are_refused(tmp_path) -> None:
    stable_baselines3.PPO("MlpPolicy", vector_env(Toy), device="cpu").save(tmp_path / "ppo")
    small(TRPO, vector_env(Toy)).save(tmp_path / "trpo")
    for name in ("ppo", "trpo"):
        with pytest.raises(CheckpointError, match="another algorithm than A2C"):
            A2C.load(tmp_path / name)
