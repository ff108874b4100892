"""One file that holds the whole training: what goes in, what comes out, and what is refused."""

import copy
import io
import pathlib
import random
import warnings
import zipfile

import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

from agents import NPG, TRPO
from agents.rollout import Rollout
from envs import LeanVecNormalize
from npg.errors import CheckpointError, ConfigurationError
from tests.agents.helpers import (
    AGENTS,
    BOX,
    DICTIONARY,
    VECTOR,
    BatchNorm,
    Toy,
    finite,
    parameters,
    record_kl,
    same,
    small,
    vector_env,
)

both_agents = pytest.mark.parametrize("agent", AGENTS)
both_critics = pytest.mark.parametrize("critic", ["adam", "gauss-newton"])


def box_env(count: int = 1):
    return vector_env(lambda: Toy(VECTOR, BOX), count)


def some_observations(rows: int = 6) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(rows, 3)).astype(np.float32)


def actions_of(agent) -> np.ndarray:
    return agent.predict(some_observations(), deterministic=True)[0]


def flattened(state) -> list:
    """All leaves of nested dictionaries and lists, in order."""
    if isinstance(state, dict):
        return [leaf for key in sorted(state, key=str) for leaf in flattened(state[key])]
    if isinstance(state, list | tuple):
        return [leaf for item in state for leaf in flattened(item)]
    return [state]


def equal_states(first, second) -> bool:
    a, b = flattened(first), flattened(second)
    return len(a) == len(b) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(a, b, strict=True)
    )


# -------------------------------------------------------------------------------------- round trip


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
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        data = archive.read("data").decode()
    assert '"n_steps"' not in data
    assert '"gamma"' in data
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
    with pytest.raises(ValueError, match="policy kwargs"):
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
    loaded = TRPO.load(tmp_path / "model")
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


# ------------------------------------------------------------------------------------- normalisers


def normalised(model) -> VecNormalize:
    env = model.get_vec_normalize_env()
    assert env is not None
    return env


def normalisers(env) -> int:
    """Number of normalisers around an environment."""
    count = 0
    while hasattr(env, "venv"):
        count += isinstance(env, VecNormalize)
        env = env.venv
    return count


@pytest.fixture
def saved(tmp_path) -> tuple[TRPO, pathlib.Path]:
    model = small(TRPO, VecNormalize(box_env(), clip_obs=3.0, gamma=0.9)).learn(64 * 2)
    model.save(tmp_path / "model")
    return model, tmp_path / "model.zip"


def test_raw_environments_get_the_stored_normaliser(saved) -> None:
    model, path = saved
    loaded = TRPO.load(path, env=box_env())
    ours, theirs = normalised(loaded), normalised(model)
    assert normalisers(loaded.env) == 1
    assert isinstance(ours, LeanVecNormalize)
    np.testing.assert_array_equal(ours.obs_rms.mean, theirs.obs_rms.mean)
    np.testing.assert_array_equal(ours.obs_rms.var, theirs.obs_rms.var)
    np.testing.assert_array_equal(ours.ret_rms.var, theirs.ret_rms.var)
    assert (ours.obs_rms.count, ours.clip_obs, ours.gamma) == (theirs.obs_rms.count, 3.0, 0.9)
    assert ours.training
    raw = some_observations()
    np.testing.assert_allclose(ours.normalize_obs(raw), theirs.normalize_obs(raw), atol=1e-6)
    loaded.learn(64, reset_num_timesteps=False)
    assert ours.obs_rms.count > theirs.obs_rms.count  # it is the one that trains


@pytest.mark.parametrize("wrapper", [VecNormalize, LeanVecNormalize])
def test_a_fresh_normaliser_takes_the_stored_statistics_and_no_second_one(saved, wrapper) -> None:
    model, path = saved
    env = wrapper(box_env())
    loaded = TRPO.load(path, env=env)
    assert normalised(loaded) is env
    assert normalisers(loaded.env) == 1
    np.testing.assert_array_equal(env.obs_rms.mean, normalised(model).obs_rms.mean)
    np.testing.assert_array_equal(env.ret_rms.var, normalised(model).ret_rms.var)


def test_a_fresh_normaliser_keeps_the_flags_that_its_user_set(saved) -> None:
    _, path = saved
    env = VecNormalize(box_env(), training=False, norm_reward=False)
    TRPO.load(path, env=env)
    assert (env.training, env.norm_reward) == (False, False)


def test_a_normaliser_with_data_is_left_alone(saved) -> None:
    _, path = saved
    env = VecNormalize(box_env())
    env.reset()
    for _ in range(5):
        env.step(np.ones((1, 2), np.float32))
    before = copy.deepcopy(env.obs_rms)
    loaded = TRPO.load(path, env=env)
    assert normalised(loaded) is env
    assert normalisers(loaded.env) == 1
    np.testing.assert_array_equal(env.obs_rms.mean, before.mean)
    assert env.obs_rms.count == before.count


def test_a_normaliser_of_another_kind_is_left_alone(saved) -> None:
    _, path = saved
    env = VecNormalize(box_env(), norm_obs=False)
    loaded = TRPO.load(path, env=env)
    assert normalised(loaded) is env
    assert not env.norm_obs


def test_statistics_survive_a_load_without_environment(saved, tmp_path) -> None:
    model, path = saved
    predictor = TRPO.load(path)
    raw = some_observations()
    seen = normalised(model).normalize_obs(raw)  # predict() takes what the environment gives
    np.testing.assert_array_equal(
        predictor.predict(seen, deterministic=True)[0], model.predict(seen, deterministic=True)[0]
    )
    predictor.save(tmp_path / "again")
    again = TRPO.load(tmp_path / "again", env=box_env())
    np.testing.assert_array_equal(normalised(again).obs_rms.mean, normalised(model).obs_rms.mean)


def test_no_normaliser_where_none_was(tmp_path) -> None:
    small(TRPO, box_env()).save(tmp_path / "model")
    assert TRPO.load(tmp_path / "model", env=box_env()).get_vec_normalize_env() is None


def test_dictionary_observations_keep_their_normaliser(tmp_path) -> None:
    def env():
        return vector_env(lambda: Toy(DICTIONARY, BOX))

    wrapped = VecNormalize(env(), norm_obs_keys=["angle"])
    model = small(TRPO, wrapped, "MultiInputPolicy").learn(64)
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=env())
    assert normalised(loaded).norm_obs_keys == ["angle"]
    np.testing.assert_array_equal(
        normalised(loaded).obs_rms["angle"].mean, wrapped.obs_rms["angle"].mean
    )


def test_reward_normaliser_alone(tmp_path) -> None:
    model = small(TRPO, VecNormalize(box_env(), norm_obs=False)).learn(64)
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=box_env())
    assert not normalised(loaded).norm_obs
    assert normalised(loaded).ret_rms.var == normalised(model).ret_rms.var


# --------------------------------------------------------------------------------------- bad files


def test_a_failing_save_keeps_the_old_file(tmp_path, monkeypatch) -> None:
    model = small(TRPO, box_env())
    path = tmp_path / "model.zip"
    model.save(path)
    old = path.read_bytes()

    def full_disk(*_args, **_kwargs):
        raise OSError("No space left on device")

    model.learn(64)
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        model.save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["model.zip"]
    monkeypatch.undo()
    assert not same(parameters(model), parameters(TRPO.load(path)))


def test_saving_over_a_file_replaces_it_and_leaves_nothing_else(tmp_path) -> None:
    model = small(TRPO, box_env())
    model.save(tmp_path / "model")
    model.learn(64)
    model.save(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model.zip"]
    assert same(parameters(model), parameters(TRPO.load(tmp_path / "model")))


def truncated(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def half(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


def garbage(path: pathlib.Path) -> None:
    path.write_bytes(b"not a zip file at all" * 50)


def flipped(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("policy.pth").header_offset
    content[start + 300] ^= 0xFF
    path.write_bytes(bytes(content))


def other_zip(path: pathlib.Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, "truncated"),
        (half, "truncated"),
        (empty, "truncated"),
        (garbage, "zip"),
        (flipped, r"policy\.pth"),
        (other_zip, "lacks"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(damage, said, tmp_path) -> None:
    path = tmp_path / "model.zip"
    small(TRPO, box_env()).save(path)
    damage(path)
    with pytest.raises(CheckpointError, match=said) as raised:
        TRPO.load(path)
    assert "model.zip" in str(raised.value)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("name", ["absent", "absent.zip"])
def test_a_missing_file_is_named(name, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="absent"):
        TRPO.load(tmp_path / name)


def test_a_folder_is_no_checkpoint(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="checkpoint"):
        TRPO.load(tmp_path)


def test_garbage_in_memory() -> None:
    with pytest.raises(CheckpointError):
        TRPO.load(io.BytesIO(b"garbage"))


@pytest.mark.parametrize("algorithm", ["DQN", "A2C", "PPO"])
def test_another_algorithms_file_is_refused(algorithm: str, tmp_path) -> None:
    """An A2C file has the same kind of policy, and would load in silence."""
    settings = {"buffer_size": 10} if algorithm == "DQN" else {"n_steps": 8}
    other = getattr(stable_baselines3, algorithm)
    other("MlpPolicy", vector_env(Toy), device="cpu", **settings).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="another algorithm than TRPO"):
        TRPO.load(tmp_path / "model")


# ------------------------------------------------------------------------ files of other libraries


@pytest.fixture
def peer(tmp_path):
    contrib = pytest.importorskip("sb3_contrib")
    settings = {"n_steps": 64, "batch_size": 32, "seed": 0, "policy_kwargs": {"net_arch": [16]}}
    model = contrib.TRPO("MlpPolicy", box_env(), target_kl=0.02, device="cpu", **settings)
    model.learn(64 * 2)
    model.save(tmp_path / "peer")
    return model, tmp_path / "peer.zip"


def test_a_file_of_sb3_contrib_means_what_it_meant_and_trains_on(peer, monkeypatch) -> None:
    model, path = peer
    monkeypatch.setattr(TRPO, "_warned_about_joint_kl", False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = TRPO.load(path, env=box_env())
    assert len(caught) == 1
    assert "afresh" in str(caught[0].message)
    np.testing.assert_array_equal(actions_of(model), actions_of(loaded))
    assert (loaded.kl_reduction, loaded.step_norm) == ("per-dimension", "damped")
    assert loaded.actor_optimizer.param_groups[0]["step_norm"] == "damped"
    assert loaded.target_kl == 0.02
    assert loaded.actor_optimizer.param_groups[0]["target_kl"] == 0.02 * BOX.shape[0]
    assert loaded.num_timesteps == 64 * 2
    assert equal_states(model.policy.optimizer.state_dict(), loaded.policy.optimizer.state_dict())
    before = parameters(loaded)
    loaded.learn(64, reset_num_timesteps=False)
    assert not same(before, parameters(loaded))
    assert finite(loaded)


def test_a_file_of_sb3_contrib_gets_the_fast_rollout(peer) -> None:
    _, path = peer
    assert isinstance(TRPO.load(path, env=box_env()).rollout_buffer, Rollout)


def test_a_file_of_sb3_contrib_saved_here_is_ours(peer, tmp_path) -> None:
    _, path = peer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TRPO.load(path, env=box_env()).save(tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = TRPO.load(tmp_path / "ours", env=box_env())
    assert again.kl_reduction == "per-dimension"


def test_an_explicit_reduction_wins(peer) -> None:
    _, path = peer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert TRPO.load(path, kl_reduction="joint").kl_reduction == "joint"


def test_a_file_of_trpo_is_no_file_of_npg(tmp_path) -> None:
    small(TRPO, box_env()).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="another algorithm than NPG"):
        NPG.load(tmp_path / "model", env=box_env())


def test_a_damaged_member_is_named_as_damage(tmp_path) -> None:
    small(TRPO, box_env()).save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    members["policy.pth"] = members["policy.pth"][:100]
    with zipfile.ZipFile(tmp_path / "cut.zip", "w") as cut:
        for name, content in members.items():
            cut.writestr(name, content)
    with pytest.raises(CheckpointError, match="damaged"):
        TRPO.load(tmp_path / "cut.zip")


def test_set_env_keeps_the_statistics_of_now(tmp_path) -> None:
    model = small(TRPO, LeanVecNormalize(box_env()))
    model.learn(64)
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=box_env())
    loaded.learn(64, reset_num_timesteps=False)
    count = float(loaded.get_vec_normalize_env().obs_rms.count)
    loaded.set_env(box_env())
    assert float(loaded.get_vec_normalize_env().obs_rms.count) == count


# -------------------------------------------------------------------------------------- set_env


def test_set_env_goes_on_with_the_new_environment() -> None:
    model = small(TRPO, box_env())
    model.learn(64)
    env = box_env()
    model.set_env(env)
    assert model.get_env() is env
    assert model._last_obs is None
    model.learn(64, reset_num_timesteps=False)
    assert env.envs[0].total == 64
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(box_env(2))
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(vector_env(Toy))


def test_set_env_after_load_applies_the_stored_normaliser(saved) -> None:
    model, path = saved
    loaded = TRPO.load(path)
    loaded.set_env(box_env())
    assert unwrap_vec_normalize(loaded.env) is not None
    np.testing.assert_array_equal(normalised(loaded).obs_rms.mean, normalised(model).obs_rms.mean)
    assert normalisers(loaded.env) == 1
