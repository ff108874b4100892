"""Pickles of data are read as pickle reads them, and no others are."""

import codecs
import collections
import contextlib
import copyreg
import functools
import operator
import os
import pathlib
import pickle
import random
import re
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from agents import pickled_values
from npg.errors import CheckpointError

PROTOCOLS = pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))


@PROTOCOLS
@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(2**100),
        0.1,
        "ß\n",
        b"\x00\xff",
        bytearray(b"ab"),
        [1, [2, ()]],
        (1, (2, 3), (4, 5, 6, 7)),
        {"a": {1: None}, (1, "b"): [2.5]},
        {1, "a"},
        frozenset({1, 2}),
        collections.deque([1, {"r": 2.0}], maxlen=5),
        collections.OrderedDict(b=1, a=2),
        slice(1, 2),
        range(1, 9, 2),
        1 + 2j,
        pathlib.Path("logs/run"),
        torch.nn.ReLU,
        torch.optim.Adam,
        RolloutBuffer,
        np.float32,
        np.dtype(">i4"),
        np.float64(0.1),
        np.int64(3),
        np.bool_(True),
        torch.device("cpu"),
    ],
    ids=lambda value: type(value).__name__,  # a set's repr is another in every process
)
def test_data(value, protocol):
    found = pickled_values.read(pickle.dumps(value, protocol))
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, collections.OrderedDict):
        assert list(found) == list(value)
    if isinstance(value, collections.deque):
        assert found.maxlen == value.maxlen


@PROTOCOLS
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int8).reshape(2, 3)),
        np.zeros((0, 3), np.float32),
        np.array(2.5),
        np.arange(3, dtype=">f4"),
        np.array([True, False]),
        np.array([1 + 2j]),
    ],
    ids=lambda value: type(value).__name__,  # a set's repr is another in every process
)
def test_arrays(array, protocol):
    found = pickled_values.read(pickle.dumps(array, protocol))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.flags.writeable
    assert found.flags.f_contiguous == array.flags.f_contiguous


def test_masks_have_two_truth_values():
    whole = pickle.dumps(np.array([True, False, True]))
    assert whole.count(b"\x01\x00\x01") == 1
    found = pickled_values.read(whole.replace(b"\x01\x00\x01", b"\x07\x00\x80"))
    assert found.view(np.uint8).tolist() == [1, 0, 1]


SPACES = [
    spaces.Box(-1, np.array([1.0, np.inf], np.float32)),
    spaces.Box(0, 255, (2, 2, 3), np.uint8),
    spaces.Box(-np.inf, np.inf, (2,), np.int64),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 3], start=[1, 0], dtype=np.int32),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 3]),
    spaces.Dict(collections.OrderedDict(z=spaces.Discrete(2), a=spaces.MultiBinary(2))),
    spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1)]),
]


def same_space(a, b) -> bool:
    """Equal in all that gymnasium compares, and in all else but generator and texts."""
    parts = {
        k: v
        for k, v in vars(a).items()
        if k not in ("_np_random", "sort_keys", "low_repr", "high_repr")
    }
    return (
        a == b
        and type(a) is type(b)
        and (list(a.keys()) == list(b.keys()) if isinstance(a, spaces.Dict) else True)
        and all(
            np.array_equal(value, vars(b)[name])
            and np.asarray(value).dtype == np.asarray(vars(b)[name]).dtype
            for name, value in parts.items()
            if name != "spaces"
        )
    )


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_spaces(space, seeded):
    """Also where a generator is in the pickle, which is not made."""
    if seeded:
        space.seed(0)
    assert same_space(pickled_values.read(pickle.dumps(space)), space)


def test_spaces_of_gym_are_gymnasiums():
    """Stable-Baselines3 before 2.0; their classes and attributes have the same names."""
    for space in SPACES[:5]:
        old = pickle.dumps(space, protocol=2).replace(b"gymnasium.spaces", b"gym.spaces")
        assert b"gymnasium" not in old
        assert same_space(pickled_values.read(old), space)


def test_schedules():
    linear = FloatSchedule(LinearSchedule(1.0, 0.5, 0.8))
    found = pickled_values.read(pickle.dumps({"clip": linear, "rate": ConstantSchedule(0.2)}))
    assert found["clip"](0.4) == linear(0.4)
    assert found["rate"](0.4) == 0.2


# --------------------------------------------------------------------------- what is no data


class Call:
    """Calls something when it is unpickled."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


class Mine:
    """A class of somebody's."""


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    "value",
    [
        Call(os.system, "touch {}"),
        Call(subprocess.Popen, ["touch", "x"]),
        Call(eval, "1"),
        Call(exec, "x = 1"),
        Call(getattr, "x", "join"),
        Call(__import__, "antigravity"),
        Call(open, "x", "w"),
        Call(pickle.loads, b""),
        Call(operator.attrgetter, "system"),
        Call(operator.methodcaller, "clear"),
        Call(functools.partial, print, 1),
        Call(copyreg.__newobj_ex__, Mine, (), {}),
        Call(copyreg._reconstructor, Mine, object, None),
        Call(collections.defaultdict, list),
        Call(collections.defaultdict, os.getpid),
        Call(sys.exit),
        Call(breakpoint),
        Call(np.load, "x", None, True),
        Call(np.ndarray, (10**12,)),
        Call(np.frombuffer, b"12345678", np.dtype("O")),
        Call(np._core.multiarray.scalar, np.dtype("O"), b"12345678"),
        Call(np._core.multiarray.scalar, np.dtype("f8"), b"1"),
        Call(np._core.multiarray._reconstruct, Mine, (0,), b"b"),
        Call(np._core.numeric._frombuffer, b"12345678", np.dtype("O"), (1,), "C"),
        Call(np._core.numeric._frombuffer, b"12345678", np.dtype("f8"), (10**9,), "C"),
        Call(np._core.numeric._frombuffer, b"12345678", np.dtype("f8"), (-1,), "C"),
        Call(np.dtype, "O"),
        Call(np.dtype, "V8"),
        Call(np.dtype, "M8[ns]"),
        Call(np.dtype, "f8,f8"),
        Call(np.dtype, {"names": ["a"], "formats": ["O"]}),
        Call(np.dtype, "f8", state=(3, "<", None, None, None, -1, -1, 63)),
        Call(np.dtype, "f8", state=(3, "<", None, ("a",), {"a": (np.dtype("f8"), 0)}, 8, 8, 0)),
        Call(np.dtype, "f8", state=(3, "<", (np.dtype("O"), (2,)), None, None, 8, 8, 0)),
        Call(np.dtype, "f8", state=(3, "O", None, None, None, -1, -1, 0)),
        np.array([None, Mine], object),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2, "M8[s]"),
        np.longdouble(1),
        np.random.default_rng(0),  # whose state numpy sets without looking
        np.random.RandomState(0),
        random.Random(0),
        np.random.PCG64(0),
        Call(bytearray, 10**12),
        Call(codecs.encode, "x" * 10, "zlib"),
        Call(codecs.encode, "x", "idna"),
        {((1, 2), 3): 1},
        {frozenset({1}): 1},
        Call(torch._utils._rebuild_tensor_v2, None, 0, (10**12,), (0,), False, None),
        Call(torch.load, "x"),
        Call(torch.hub.load, "x"),
        Call(spaces.Box, -1, 1),
        Call(RolloutBuffer, 10**12),
        Call(FloatSchedule, print),
        Mine(),
        Mine,
        os.system,
        gymnasium.make,
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", repr(getattr(value, "parts", type(value))))[
        :80
    ],
)
def test_what_is_no_data_is_refused(value, protocol):
    with pytest.raises(CheckpointError):
        pickled_values.read(pickle.dumps(value, protocol))


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        (spaces.Box, {"low": 1, "high": 2, "dtype": "O"}),
        (spaces.Box, {"low": np.ones(2), "high": np.zeros(2), "dtype": np.dtype("f4")}),
        (spaces.Box, {"low": np.ones(2), "high": np.ones(3), "dtype": np.dtype("f4")}),
        (spaces.Box, {}),
        (spaces.Discrete, {"n": -1}),
        (spaces.Discrete, {"n": "x"}),
        (spaces.Discrete, 5),
        (spaces.MultiDiscrete, {"nvec": "x"}),
        (spaces.MultiBinary, {"n": [[1]]}),
        (spaces.Dict, {"spaces": {"a": 1}}),
        (spaces.Dict, {"spaces": 5}),
        (spaces.Tuple, {"spaces": [1]}),
        (FloatSchedule, {"value_schedule": 5}),
        (ConstantSchedule, {"val": "x"}),
        (LinearSchedule, {"start": 1.0}),
    ],
)
def test_states_that_are_none_of_a_space_or_schedule(kind, state):
    with pytest.raises(CheckpointError):
        pickled_values.read(pickle.dumps(Call(kind, state=state)))


# A tuple that has a tuple twice that has a tuple twice..., in two bytes for each.
PAIRS = b")" + b"2\x86" * 60


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x04}" + PAIRS + b"K\x01s.",  # hashed as a key, it takes longer than the sun burns
        b"\x80\x04\x8f(" + PAIRS + b"\x90.",  # in a set
        b"\x80\x04(" + PAIRS + b"\x91.",  # in a frozen one
        b"\x80\x04cbuiltins\nset\n]" + PAIRS + b"a\x85R.",
        b"\x80\x04ccollections\nOrderedDict\n)R" + PAIRS + b"K\x01s.",
        b"\x80\x04ccollections\nOrderedDict\n]" + PAIRS + b"K\x01\x86a\x85R.",
        b"\x80\x04" + PAIRS + b".",
        b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x04" + b"(" * 100_000 + b"t" * 100_000 + b".",
        b"\x80\x04\x82\x01.",  # a number of copyreg's for a class
        b"Pname\n.",  # something outside
        b"\x80\x05\x97.",
        b"\x80\x04cbuiltins\nset\n}X\x01\x00\x00\x00aK\x01sb.",  # changes a class
        b"\x80\x04}}b.",
        b"\x80\x04N)R.",
        b"\x80\x04)}a.",
        b"\x80\x04(.",
        b"\x80\x04.",
        b"",
        b"h\x00.",
        b"(icollections\nOrderedDict\n.",
        b"L" + b"9" * 100_000 + b"L\n.",
    ],
    ids=lambda program: repr(program[:20]),
)
def test_programs_that_no_pickler_writes(program):
    with pytest.raises(CheckpointError):
        pickled_values.read(program)


def test_data_that_contain_themselves_are_refused():
    value: list = []
    value.append(value)
    with pytest.raises(CheckpointError, match="contains itself"):
        pickled_values.read(pickle.dumps(value))


@pytest.mark.parametrize("protocol", [2, 4])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_pickles_are_data_or_refused(data, protocol):
    whole = pickle.dumps({"space": SPACES[0], "kind": torch.nn.ReLU, "a": np.ones(2)}, protocol)
    start = data.draw(st.integers(0, len(whole) - 1))
    put = data.draw(st.binary(max_size=8))
    changed = whole[:start] + put + whole[start + data.draw(st.integers(0, 8)) :]
    with contextlib.suppress(CheckpointError):
        pickled_values.read(changed)
