"""Files of Stable-Baselines3, and what somebody may have put into one."""

import base64
import contextlib
import json
import os
import pickle
import subprocess
import zipfile

import cloudpickle
import pytest
import stable_baselines3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.utils import FloatSchedule

from agents import PPO
from npg.errors import CheckpointError
from tests.agents.checkpoints import actions_of, box_env


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
