"""Files damaged, absent or somebody else's: refused by name, or read as they were meant."""

import io
import pathlib
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import stable_baselines3

from agents import NPG, PPO, TRPO
from agents.rollout import Rollout
from npg.errors import CheckpointError
from tests.agents.checkpoints import actions_of, box_env, equal_states
from tests.agents.helpers import BOX, Toy, finite, parameters, same, small, vector_env

# --------------------------------------------------------------------------------------- bad files


def test_a_failing_save_keeps_the_old_file(tmp_path, monkeypatch) -> None:
    model = small(TRPO, box_env())
    path = tmp_path / "model.zip"
    model.save(path)
    old = path.read_bytes()

    def full_disk(*_args, **_kwargs):
        raise OSError("No space left on device")

    model.learn(64)
    monkeypatch.setattr(safetensors.torch, "save", full_disk)
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
    content[len(content) // 2] ^= 1
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
        (flipped, "SHA-256"),
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


def test_a_damaged_member_is_named_as_damage(tmp_path) -> None:
    stable_baselines3.PPO("MlpPolicy", box_env(), device="cpu").save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    members["policy.pth"] = members["policy.pth"][:100]
    with zipfile.ZipFile(tmp_path / "cut.zip", "w") as cut:
        for name, content in members.items():
            cut.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"policy\.pth is damaged"):
        PPO.load(tmp_path / "cut.zip")


# ------------------------------------------------------------------------ files of other libraries


@pytest.mark.parametrize("algorithm", ["DQN", "A2C", "PPO"])
def test_another_algorithms_file_is_refused(algorithm: str, tmp_path) -> None:
    """An A2C file has the same kind of policy, and would load in silence."""
    settings = {"buffer_size": 10} if algorithm == "DQN" else {"n_steps": 8}
    other = getattr(stable_baselines3, algorithm)
    other("MlpPolicy", vector_env(Toy), device="cpu", **settings).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="another algorithm than TRPO"):
        TRPO.load(tmp_path / "model")


def test_a_file_of_trpo_is_no_file_of_npg(tmp_path) -> None:
    small(TRPO, box_env()).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="another algorithm than NPG"):
        NPG.load(tmp_path / "model", env=box_env())


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
