"""Files of Stable-Baselines3, and what somebody may have put into one."""

import base64
import contextlib
import io
import json
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict

import cloudpickle
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.utils import FloatSchedule

from agents import PPO, torch_file
from npg.errors import CheckpointError
from tests.agents.checkpoints import actions_of, box_env, equal_states
from tests.agents.helpers import BOX, Toy, vector_env


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """An agent of Stable-Baselines3, and its file."""
    path = tmp_path_factory.mktemp("peer") / "peer.zip"
    model = stable_baselines3.PPO("MlpPolicy", box_env(), n_steps=64, device="cpu", seed=0)
    model.learn(64)
    model.save(path)
    return model, path


def changed(path, target, **attributes):
    """A copy whose attributes have other pickles, or JSON values."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(members["data"])
    for name, value in attributes.items():
        if isinstance(value, bytes):
            value = {":type:": "x", ":serialized:": base64.b64encode(value).decode()}
        data[name] = value
    members["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def load(path, **arguments):
    with pytest.warns(UserWarning, match="afresh"):
        return PPO.load(path, device="cpu", **arguments)


class Command:
    """Runs a program when it is unpickled."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def test_a_file_of_the_peer_needs_no_trust(peer):
    model, path = peer
    ours = load(path, env=box_env())
    assert (actions_of(ours) == actions_of(model)).all()
    assert ours.policy_class is type(model.policy)
    assert ours.observation_space == model.observation_space
    assert ours.num_timesteps == 64


@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch {}"),
        (subprocess.call, ["touch", "{}"]),
        (eval, "open('{}', 'w')"),
        (exec, "open('{}', 'w')"),
        (getattr, "x", "join"),
        (__import__, "antigravity"),
        (open, "{}", "w"),
        (pickle.loads, b""),
    ],
    ids=lambda call: call[0].__name__,
)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"a": [x]}], ids=["bare", "nested"])
def test_programs_in_pickles_are_refused_by_name(peer, tmp_path, call, wrap):
    trace = tmp_path / "trace"
    words = [w.format(trace) if isinstance(w, str) else w for w in call[1:]]
    words = [[w.format(trace) for w in word] if isinstance(word, list) else word for word in words]
    attack = pickle.dumps(wrap(Command(call[0], *words)))
    file = changed(peer[1], tmp_path / "bad.zip", policy_kwargs=attack)
    with pytest.raises(CheckpointError, match=call[0].__name__) as raised:
        PPO.load(file)
    assert "trust=True" in str(raised.value)
    assert "custom_objects={'policy_kwargs': ...}" in str(raised.value)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["ActorCriticPolicy", "RolloutBuffer"])
def test_classes_are_named_and_not_called(peer, tmp_path, name):
    kinds = {
        "ActorCriticPolicy": stable_baselines3.common.policies.ActorCriticPolicy,
        "RolloutBuffer": stable_baselines3.common.buffers.RolloutBuffer,
    }
    attack = pickle.dumps(Command(kinds[name], 10**12))
    with pytest.raises(CheckpointError):
        PPO.load(changed(peer[1], tmp_path / "bad.zip", policy_kwargs=attack))


def test_a_pickle_cannot_change_a_class(peer, tmp_path):
    """BUILD with a slot state sets attributes on whatever lies on the stack."""
    before = FloatSchedule.__call__
    schedule = b"cstable_baselines3.common.utils\nFloatSchedule\n"
    attack = b"\x80\x04" + schedule + b"N}X\x08\x00\x00\x00__call__I1\ns\x86b."
    with pytest.raises(CheckpointError, match="change a class"):
        PPO.load(changed(peer[1], tmp_path / "bad.zip", policy_kwargs=attack))
    assert FloatSchedule.__call__ is before


def rewritten(path, target, compression=zipfile.ZIP_STORED, **changes):
    """A copy with other members, compressed or not."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in {**members, **changes}.items():
            archive.writestr(name, content)
    return target


def saved(state) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_a_file_that_somebody_compressed_is_read(peer, tmp_path):
    file = rewritten(peer[1], tmp_path / "small.zip", zipfile.ZIP_DEFLATED)
    assert (actions_of(load(file)) == actions_of(peer[0])).all()


def test_a_bomb_is_refused(peer, tmp_path):
    bomb = {"data": b" " * 100_000_000}
    file = rewritten(peer[1], tmp_path / "bomb.zip", zipfile.ZIP_DEFLATED, **bomb)
    with pytest.raises(CheckpointError, match="times as large"):
        PPO.load(file)


def test_states_are_those_that_torch_reads(peer):
    """The oracle is torch's own reader."""
    state = {
        "types": [torch.ones(2).to(t) for t in (torch.bfloat16, torch.bool, torch.int16)],
        "views": [torch.arange(6.0).reshape(2, 3).T, torch.arange(6)[2:4], torch.zeros(0, 2)],
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "module": torch.nn.BatchNorm1d(2).state_dict(),
        "optimizer": peer[0].policy.optimizer.state_dict(),
    }
    found = torch_file.read(saved(state), "it", "cpu")
    expected = torch.load(io.BytesIO(saved(state)), weights_only=True)
    assert equal_states(found, expected)
    assert found["views"][0].stride() == (1, 3)
    assert found["module"]._metadata == expected["module"]._metadata
    assert [t.dtype for t in found["types"]] == [t.dtype for t in expected["types"]]


class View:
    """A tensor that claims another size than its memory has."""

    def __init__(self, size, stride):
        self.parts = (torch.ones(4).untyped_storage(), 0, size, stride)

    def __reduce__(self):
        storage = torch.storage.TypedStorage(
            wrap_storage=self.parts[0], dtype=torch.float32, _internal=True
        )
        return torch._utils._rebuild_tensor_v2, (storage, *self.parts[1:], False, OrderedDict())


@pytest.mark.parametrize(
    "state",
    [
        View((5,), (1,)),
        View((10**6,), (0,)),
        View((-1,), (1,)),
        {((1, 2), 3): torch.ones(1)},
        Command(os.system, "true"),
        torch.ones(2).to_sparse(),
    ],
    ids=range(6),
)
def test_states_that_are_none(peer, tmp_path, state):
    file = rewritten(peer[1], tmp_path / "bad.zip", **{"policy.pth": saved(state)})
    with pytest.raises(CheckpointError, match=r"policy\.pth is damaged"):
        PPO.load(file)


def test_memory_that_a_file_does_not_have(peer, tmp_path):
    whole = saved({"a": torch.ones(4)})
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (n for n in members if n.endswith("data/0"))
    members[name] = members[name][:8]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    with pytest.raises(CheckpointError, match="4 numbers in 8 bytes"):
        torch_file.read(file.getvalue(), "it", "cpu")


def test_a_file_of_gyms_times(tmp_path):
    """Spaces of gym, one extractor of features, a list of one net_arch: as SB3 1.6 wrote it."""
    env = vector_env(lambda: Toy(spaces.Box(0, 255, (36, 36, 1), np.uint8), BOX))
    policy_kwargs = {"net_arch": {"pi": [8], "vf": [8]}}
    model = stable_baselines3.PPO(
        "CnnPolicy", env, n_steps=8, batch_size=8, policy_kwargs=policy_kwargs, device="cpu"
    )
    model.policy_kwargs = {"net_arch": [policy_kwargs["net_arch"]]}
    model.save(tmp_path / "new")
    old = {
        name: pickle.dumps(getattr(model, name), 2).replace(b"gymnasium.spaces", b"gym.spaces")
        for name in ("observation_space", "action_space")
    }
    file = changed(tmp_path / "new.zip", tmp_path / "gym.zip", **old)
    state = {
        name: value
        for name, value in model.policy.state_dict().items()
        if not name.startswith(("pi_features", "vf_features"))
    }
    file = rewritten(file, tmp_path / "old.zip", **{"policy.pth": saved(state)})
    ours = load(file)
    seen = np.random.default_rng(0).integers(0, 255, (3, 36, 36, 1), np.uint8)
    expected = model.predict(seen, deterministic=True)[0]
    assert (ours.predict(seen, deterministic=True)[0] == expected).all()
    assert type(ours.observation_space) is type(model.observation_space)


def test_versions_are_printed(peer, tmp_path, capsys):
    """Those at saving, too, of the peer's files and of ours."""
    ours = load(peer[1], print_system_info=True)
    ours.save(tmp_path / "ours")
    PPO.load(tmp_path / "ours", print_system_info=True)
    words = capsys.readouterr().out
    assert words.count("== SAVED MODEL SYSTEM INFO ==") == 2
    assert words.count(f"- PyTorch: {torch.__version__}") == 4


def test_references_without_end(peer, tmp_path):
    """Lists of the same list twice, fifty deep: whoever visits it all, a save() say, never ends."""
    value: list = []
    for _ in range(50):
        value = [value, value]
    file = changed(peer[1], tmp_path / "deep.zip", from_the_future=pickle.dumps(value))
    with pytest.raises(CheckpointError, match=r"from_the_future .* more than 10,000,000 values"):
        load(file)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80", b"garbage", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", b"cos\nsystem\n."],
    ids=repr,
)
def test_what_is_no_pickle(peer, tmp_path, content):
    with pytest.raises(CheckpointError):
        PPO.load(changed(peer[1], tmp_path / "bad.zip", policy_kwargs=content))


def test_a_schedule_with_code_needs_trust_or_another(peer, tmp_path):
    file = changed(peer[1], tmp_path / "code.zip", clip_range=cloudpickle.dumps(lambda left: 0.3))
    with pytest.raises(
        CheckpointError, match=r"clip_range .*custom_objects=\{'clip_range': \.\.\.\}"
    ):
        PPO.load(file)
    assert load(file, trust=True).clip_range(1.0) == 0.3
    assert load(file, custom_objects={"clip_range": 0.1}).clip_range(1.0) == 0.1


def test_the_schedule_that_is_made_anew_is_not_read(peer, tmp_path):
    """Older versions of Stable-Baselines3 pickled it with its code."""
    file = changed(peer[1], tmp_path / "old.zip", lr_schedule=cloudpickle.dumps(lambda left: 9.0))
    assert load(file).lr_schedule(1.0) == peer[0].lr_schedule(1.0)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_files_load_or_are_refused(peer, tmp_path, data):
    """Nothing but a CheckpointError, and no code run; zip files have bytes that nobody reads."""
    whole = peer[1].read_bytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    put = data.draw(st.binary(max_size=30))
    file = tmp_path / "mutated.zip"
    file.write_bytes(whole[:start] + put + whole[start + data.draw(st.integers(0, 30)) :])
    with contextlib.suppress(CheckpointError):
        PPO.load(file, device="cpu")
