"""One file that holds the whole training: what goes in, what comes out, and what may change."""

import io
import pathlib
import random
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from agents import NPG, PPO, TRPO
from npg import checkpoints, optim
from npg.errors import CheckpointError, ConfigurationError
from tests.agents.checkpoints import actions_of, box_env, equal_states, some_observations
from tests.agents.helpers import (
    BOX,
    VECTOR,
    BatchNorm,
    Toy,
    both_agents,
    both_critics,
    parameters,
    record_kl,
    same,
    small,
    vector_env,
)


@both_critics
@both_agents
def test_round_trip_restores_policy_and_every_optimizer(agent, critic, tmp_path) -> None:
    model = small(agent, box_env(), critic=critic).learn(64 * 3)
    model.save(tmp_path / "model")
    loaded = agent.load(tmp_path / "model.zip")
    assert same(parameters(model), parameters(loaded))
    np.testing.assert_array_equal(actions_of(model), actions_of(loaded))
    assert loaded.num_timesteps == 64 * 3
    assert loaded._n_updates == 3
    assert equal_states(model.policy.optimizer.state_dict(), loaded.policy.optimizer.state_dict())
    if critic == "adam":  # its moments are there at all
        steps = [s["step"] for s in loaded.policy.optimizer.state_dict()["state"].values()]
        assert steps
        assert all(int(step) == 3 * 2 * 2 for step in steps)  # updates × epochs × minibatches
    ours, theirs = model._optimizers(), loaded._optimizers()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert equal_states(ours[name].state_dict(), theirs[name].state_dict())
    assert theirs["actor"].extra["steps"] == 3
    if critic == "gauss-newton":
        assert theirs["critic"].extra["steps"] == 3 * model.critic_steps
        assert loaded.critic_fit.optimizer.schedule.damping != 1e-2  # it has adapted
        assert (
            loaded.critic_fit.optimizer.schedule.damping
            == model.critic_fit.optimizer.schedule.damping
        )


@both_critics
@both_agents
def test_training_goes_on_as_if_it_had_not_stopped(agent, critic, tmp_path) -> None:
    """The environment starts a new episode at `load`; everything random goes on as it was."""
    settings = {"critic": critic, "sub_sampling_factor": 2}
    model = small(agent, VecNormalize(box_env()), **settings).learn(64 * 2)
    model.save(tmp_path / "model")

    def fresh_env():
        env = box_env()
        env.seed(123)
        return env

    resumed = agent.load(tmp_path / "model", env=fresh_env())
    resumed.env.seed(123)  # `load` seeds with the model's seed
    resumed.learn(64 * 2, reset_num_timesteps=False)
    first = parameters(resumed)

    # The same from the model that was never saved: same generators, same fresh environment.
    loaded = agent.load(tmp_path / "model")  # only to set the generators
    del loaded
    model.get_vec_normalize_env().venv = fresh_env()
    model.get_vec_normalize_env().returns = np.zeros(1)
    model._last_obs = None
    model.env.seed(123)
    model.learn(64 * 2, reset_num_timesteps=False)
    assert same(first, parameters(model))
    assert resumed.num_timesteps == model.num_timesteps == 64 * 4


def test_load_restores_the_generators(tmp_path) -> None:
    model = small(TRPO, box_env()).learn(64)
    random.seed(5)
    np.random.seed(6)  # noqa: NPY002
    torch.manual_seed(7)
    torch.randn(3), np.random.normal(), random.gauss(0, 1)  # noqa: NPY002 - half-used pairs
    model.save(tmp_path / "model")

    def draws() -> list[float]:
        uniform = [random.random(), random.gauss(0, 1), np.random.normal()]  # noqa: NPY002
        return [*uniform, np.random.random(), float(torch.rand(()))]  # noqa: NPY002

    expected = draws()
    draws()
    TRPO.load(tmp_path / "model")
    assert draws() == expected


def test_a_new_seed_reseeds_instead(tmp_path) -> None:
    small(TRPO, box_env()).save(tmp_path / "model")
    drawn = []
    for _ in range(2):
        TRPO.load(tmp_path / "model", seed=11)
        drawn.append(float(torch.rand(())))
    TRPO.load(tmp_path / "model", seed=12)
    assert drawn[0] == drawn[1] != float(torch.rand(()))


def test_file_like_objects(tmp_path) -> None:
    model = small(TRPO, box_env()).learn(64)
    memory = io.BytesIO()
    model.save(memory)
    memory.seek(0)
    loaded = TRPO.load(memory)
    assert same(parameters(model), parameters(loaded))
    with open(tmp_path / "file.zip", "wb") as file:
        model.save(file)
    with open(tmp_path / "file.zip", "rb") as file:
        assert same(parameters(model), parameters(TRPO.load(file)))


def test_path_kinds_and_endings(tmp_path, monkeypatch) -> None:
    model = small(TRPO, box_env())
    monkeypatch.chdir(tmp_path)
    model.save("plain")
    model.save(pathlib.Path("folder/model"))
    model.save("model.best")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "model.best", "plain.zip"]
    for path in ("plain", "plain.zip", pathlib.Path("plain"), "folder/model", "model.best"):
        assert same(parameters(model), parameters(TRPO.load(path)))


def test_exclude_and_include(tmp_path) -> None:
    model = small(TRPO, box_env())
    model.save(tmp_path / "model", exclude=["n_steps"], include=["_last_obs"])
    saved = checkpoints.read(tmp_path / "model.zip")["agent"]
    assert "n_steps" not in saved
    assert "gamma" in saved
    assert TRPO.load(tmp_path / "model").n_steps == 2048  # the constructor's default
    model.save(tmp_path / "with", include=["logger", "tensorboard_log"])
    assert TRPO.load(tmp_path / "with").n_steps == 64


def test_custom_objects_and_keyword_arguments(tmp_path) -> None:
    model = small(TRPO, box_env(), learning_rate=0.5)
    model.save(tmp_path / "model")
    custom = {"learning_rate": 0.25, "lr_schedule": lambda _: 0.25}
    assert TRPO.load(tmp_path / "model", custom_objects=custom).learning_rate == 0.25
    loaded = TRPO.load(tmp_path / "model", env=box_env(), target_kl=0.2, gamma=0.5)
    assert loaded.target_kl == 0.2
    assert loaded.rollout_buffer.gamma == 0.5
    with pytest.raises(ValueError, match="policy_kwargs"):
        TRPO.load(tmp_path / "model", policy_kwargs={"net_arch": [3]})


@pytest.mark.parametrize("way", ["argument of load", "attribute"])
@pytest.mark.parametrize("target_kl", [0.2, 0.001])
def test_a_new_target_counts_from_the_next_update_on(target_kl, way, tmp_path) -> None:
    model = small(TRPO, box_env()).learn(64)
    model.save(tmp_path / "model")
    changed = {"target_kl": target_kl} if way == "argument of load" else {}
    loaded = TRPO.load(tmp_path / "model", env=box_env(), **changed)
    loaded.target_kl = target_kl
    divergences = record_kl(loaded)
    loaded.learn(64 * 2, reset_num_timesteps=False)
    assert 0.3 * target_kl < max(divergences) <= target_kl


def test_a_new_step_size_counts_too(tmp_path) -> None:
    model = small(NPG, box_env(), step_size=0.01).learn(64)
    model.save(tmp_path / "model")
    moved = []
    for step_size in (0.01, 1e-9):
        loaded = NPG.load(tmp_path / "model", env=box_env(), step_size=step_size)
        before = loaded.policy.action_net.weight.detach().clone()
        loaded.learn(64, reset_num_timesteps=False)
        moved.append(float((loaded.policy.action_net.weight.detach() - before).norm()))
    assert moved[1] < 1e-3 * moved[0]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"critic": "foo"}, "critic"),
        ({"target_kl": -1.0}, "target_kl"),
        ({"curvature": "foo"}, "curvature"),
        ({"kl_reduction": "foo"}, "kl_reduction"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_keyword_arguments_are_checked_on_load_too(settings, named, tmp_path) -> None:
    small(TRPO, box_env()).save(tmp_path / "model")
    with pytest.raises(ConfigurationError, match=named):
        TRPO.load(tmp_path / "model", **settings)


def test_load_with_another_number_of_environments(tmp_path) -> None:
    small(TRPO, VecNormalize(box_env())).learn(64).save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=box_env(3))
    assert loaded.n_envs == loaded.rollout_buffer.n_envs == 3
    before = parameters(loaded)
    loaded.learn(64 * 3)
    assert not same(before, parameters(loaded))


def test_loading_a_choice_does_not_warn_about_it(tmp_path, monkeypatch) -> None:
    small(TRPO, box_env(), kl_reduction="per-dimension").save(tmp_path / "model")
    monkeypatch.setattr(TRPO, "_warned_about_joint_kl", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = TRPO.load(tmp_path / "model", env=box_env())
    assert loaded.kl_reduction == "per-dimension"


def test_batch_norm_statistics_are_in_the_file(tmp_path) -> None:
    extractor = {"features_extractor_class": BatchNorm}
    model = small(TRPO, box_env(), policy_kwargs=extractor).learn(64)
    model.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"tests.agents.helpers:BatchNorm .* trust=True"):
        TRPO.load(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", custom_objects={"policy_kwargs": model.policy_kwargs})
    trusted = TRPO.load(tmp_path / "model", trust=True)
    assert same(parameters(loaded), parameters(trusted))
    state = loaded.policy.features_extractor.net[1]
    assert torch.equal(state.running_mean, model.policy.features_extractor.net[1].running_mean)
    assert not torch.equal(state.running_mean, torch.zeros(3))


def test_a_copy_of_the_agent_can_be_trained_apart(tmp_path) -> None:
    model = small(TRPO, box_env(), critic="gauss-newton").learn(64)
    before = parameters(model)
    memory = io.BytesIO()
    model.save(memory)
    memory.seek(0)
    twin = TRPO.load(memory, env=box_env())
    twin.learn(64, reset_num_timesteps=False)
    assert same(before, parameters(model))
    assert not same(before, parameters(twin))


def test_observations_by_name_keep_their_order(tmp_path) -> None:
    """Features are put together in it; Gymnasium sorts what it is given as a dictionary."""
    parts = OrderedDict(z=VECTOR, a=spaces.Box(-1, 1, (2,), np.float64), m=spaces.Discrete(3))
    model = small(TRPO, vector_env(lambda: Toy(spaces.Dict(parts), BOX)), "MultiInputPolicy")
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model")
    assert list(loaded.observation_space.spaces) == ["z", "a", "m"]
    assert loaded.observation_space == model.observation_space
    seen = {"z": some_observations(2), "a": np.ones((2, 2)), "m": np.array([0, 2])}
    np.testing.assert_array_equal(
        model.predict(seen, deterministic=True)[0], loaded.predict(seen, deterministic=True)[0]
    )


def test_what_only_trust_reads_is_named_when_it_is_saved(tmp_path) -> None:
    model = small(PPO, box_env(), clip_range=lambda left: 0.1 + left)
    words = r"agent\.clip_range.*trust=True.*custom_objects=\{'clip_range': \.\.\.\}"
    with pytest.warns(UserWarning, match=words):
        model.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=words):
        PPO.load(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", custom_objects={"clip_range": 0.3})
    assert loaded.clip_range(1.0) == 0.3
    assert PPO.load(tmp_path / "model", trust=True).clip_range(1.0) == 1.1


def test_a_schedule_of_learning_rates_is_saved_once(tmp_path) -> None:
    model = small(PPO, box_env(), learning_rate=LinearSchedule(1e-3, 1e-4, 0.5))
    model.tensorboard_log = tmp_path / "logs"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save(tmp_path / "model")
    assert "lr_schedule" not in checkpoints.read(tmp_path / "model.zip")["agent"]
    loaded = PPO.load(tmp_path / "model")
    assert loaded.lr_schedule(0.75) == model.lr_schedule(0.75)
    assert loaded.tensorboard_log == model.tensorboard_log


def test_the_count_of_skipped_updates_goes_on(tmp_path) -> None:
    model = small(TRPO, box_env())
    model.skipped_updates = 3
    model.save(tmp_path / "model")
    assert TRPO.load(tmp_path / "model").skipped_updates == 3


@pytest.mark.parametrize("optimizer", optim.names())
def test_every_optimizer_is_saved_without_a_pickle(optimizer, tmp_path) -> None:
    try:
        model = small(PPO, box_env(), optimizer=optimizer, learning_rate=1e-3)
    except ConfigurationError:
        pytest.skip("no optimizer of gradients alone")
    model.learn(64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model")
    assert equal_states(model.policy.optimizer.state_dict(), loaded.policy.optimizer.state_dict())
