"""Stable-Baselines3's contract of a model: `predict`, its parameters, its modes, its seed."""

import copy
import json
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from agents import TRPO
from tests.agents.helpers import (
    AGENTS,
    BOX,
    FIRST_ORDER,
    IMAGE,
    VECTOR,
    BatchNorm,
    SmallCnn,
    Toy,
    any_agent,
    every_variant,
    parameters,
    same,
    small,
    vector_env,
)

# ------------------------------------------------------------------------- prediction, evaluation


@any_agent
def test_evaluate_policy(agent) -> None:
    model = small(agent, vector_env(lambda: Monitor(Toy(death=0.0, limit=5))))
    rewards, lengths = evaluate_policy(
        model, model.get_env(), n_eval_episodes=4, return_episode_rewards=True
    )
    assert lengths == [5] * 4
    assert len(rewards) == 4


@any_agent
def test_predict_shapes_and_determinism(agent) -> None:
    model = small(agent, vector_env(lambda: Toy(VECTOR, BOX)))
    one, many = np.zeros(3, np.float32), np.ones((4, 3), np.float32)
    assert model.predict(one)[0].shape == (2,)
    assert model.predict(many)[0].shape == (4, 2)
    first, state = model.predict(many, deterministic=True)
    assert state is None
    np.testing.assert_array_equal(first, model.predict(many, deterministic=True)[0])
    assert not np.array_equal(model.predict(many)[0], model.predict(many)[0])


# ---------------------------------------------------------------------------------- get_parameters


@every_variant
def test_parameters_can_be_read_and_written(agent, settings) -> None:
    model = small(agent, vector_env(Toy), **settings).learn(64)
    taken = copy.deepcopy(model.get_parameters())
    assert next(iter(taken)) == "policy"
    assert "policy.optimizer" in taken
    assert all("optim" in name for name in list(taken)[1:])
    before = parameters(model)
    model.learn(64)
    assert not same(before, parameters(model))
    model.set_parameters(taken)
    assert same(before, parameters(model))
    other = small(agent, vector_env(Toy), seed=1, **settings)
    other.set_parameters(taken)
    assert same(before, parameters(other))
    if agent not in FIRST_ORDER:
        assert other._optimizers()["actor"].extra["steps"] == 1


@any_agent
def test_set_parameters_complains_as_in_sb3(agent, tmp_path) -> None:
    model = small(agent, vector_env(Toy))
    taken = copy.deepcopy(model.get_parameters())
    with pytest.raises(ValueError, match="invalid object name"):
        model.set_parameters({**taken, "nonsense": {}})
    without = {name: value for name, value in taken.items() if name != "policy.optimizer"}
    with pytest.raises(ValueError, match="do not match"):
        model.set_parameters(without)
    model.set_parameters(without, exact_match=False)
    weights = dict(taken["policy"])
    weights.pop("action_net.bias")
    with pytest.raises(RuntimeError, match=r"action_net\.bias"):
        model.set_parameters({**taken, "policy": weights})
    model.save(tmp_path / "model")
    other = small(agent, vector_env(Toy), seed=3)
    other.set_parameters(str(tmp_path / "model"))
    assert same(parameters(model), parameters(other))


def test_any_program_can_read_what_is_in_the_file(tmp_path) -> None:
    """JSON and safetensors in a zip archive, and no pickle among them."""
    model = small(TRPO, VecNormalize(vector_env(Toy)), critic="gauss-newton").learn(64)
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        values = json.loads(archive.read("values.json"))["entries"]
        tensors = safetensors.torch.load(archive.read("tensors.safetensors"))
    assert values["agent"]["target_kl"] == 0.01
    assert {"policy", "policy.optimizer"} < values["states"].keys()
    assert not {"env", "rollout_buffer", "logger"} & values["agent"].keys()
    weight = tensors["states.policy.action_net.weight"]
    assert torch.equal(weight, model.policy.action_net.weight)
    assert "$pickle" not in json.dumps(values)


# ----------------------------------------------------------------------------------- train and eval


@every_variant
@pytest.mark.parametrize("share", [True, False])
def test_batch_norm_moves_in_train_and_not_elsewhere(agent, settings, share) -> None:
    extractor = {"features_extractor_class": BatchNorm, "share_features_extractor": share}
    env = vector_env(lambda: Toy(VECTOR, BOX))
    model = small(agent, env, policy_kwargs=extractor, **settings)

    def statistics() -> list[torch.Tensor]:
        names = ("features_extractor", "pi_features_extractor", "vf_features_extractor")
        norms = [getattr(model.policy, name).net[1] for name in names]
        return [b.clone() for norm in norms for b in (norm.running_mean, norm.running_var)]

    start = statistics()
    assert torch.equal(start[0], torch.zeros(3))
    assert torch.equal(start[1], torch.ones(3))
    _, callback = model._setup_learn(64)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    assert same(start, statistics())
    model.train()
    after = statistics()
    assert all(not torch.equal(a, b) for a, b in zip(start[2:], after[2:], strict=True))
    model.predict(np.ones((5, 3), np.float32))
    assert same(after, statistics())
    weights = parameters(model)
    evaluate_policy(model, vector_env(lambda: Monitor(Toy(VECTOR, BOX))), n_eval_episodes=1)
    assert same(weights, parameters(model))


@every_variant
def test_convolutional_features_are_shared_and_learn(agent, settings) -> None:
    env = vector_env(lambda: Toy(IMAGE))
    model = small(
        agent,
        env,
        "CnnPolicy",
        policy_kwargs={"features_extractor_class": SmallCnn},
        n_steps=16,
        **settings,
    )
    convolution = model.policy.features_extractor.net[0]
    before = convolution.weight.detach().clone()
    model.learn(16)
    assert {id(p) for p in model.policy.features_extractor.parameters()} <= {
        id(p) for p in model.parts.shared
    }
    assert not torch.equal(before, convolution.weight)


# ---------------------------------------------------------------------------------- deterministic


@every_variant
@pytest.mark.parametrize("count", [1, 3])
def test_the_same_seed_gives_the_same_parameters(agent, settings, count) -> None:
    def trained(seed: int) -> list[torch.Tensor]:
        env = vector_env(lambda: Toy(VECTOR, BOX), count)
        sampling = {"sub_sampling_factor": 2} if agent in AGENTS else {}
        return parameters(
            small(agent, env, seed=seed, **settings, **sampling).learn(64 * count * 2)
        )

    first = trained(0)
    torch.rand(100), np.random.rand(100)  # noqa: NPY002 - what others draw does not matter
    assert same(first, trained(0))
    assert not same(first, trained(1))
