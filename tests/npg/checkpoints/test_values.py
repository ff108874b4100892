"""What is written is what is read, and what nothing describes needs trust."""

import collections
import enum
import json
import math
import pathlib
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch

from npg import checkpoints
from npg.errors import CheckpointError
from tests.npg.checkpoints.helpers import again, forged, written


class Mine:
    """A class that no checkpoint may name."""


class Colour(enum.Enum):
    """Whose members are data."""

    RED = "red"


class Level(enum.IntEnum):
    """Whose members are numbers, too."""

    HIGH = 3


class Way(enum.StrEnum):
    """Whose members are strings, too."""

    LEFT = "left"


class Point(NamedTuple):
    """Whose fields have names."""

    x: int
    y: tuple


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        2**80,
        -0.0,
        0.1,
        math.inf,
        "ß\n\u2028",
        b"".decode(),
        [1, [2, []]],
        (1, (2, ())),
        {"a": 1, "$b": 2, "": 3},
        {1: "a", (2, 3): {"b": None}, None: 4},
        {1, 2},
        frozenset({1, (2, "a")}),
        collections.deque([1, 2, 3], maxlen=5),
        collections.OrderedDict([("b", 1), ("a", {1: 2})]),
        b"\x00\xff",
        bytearray(b"ab"),
        range(1, 9, 2),
        slice(None, 3),
        1 - 2j,
        pathlib.Path("logs") / "run",
        Colour.RED,
        Level.HIGH,
        Way.LEFT,
        Point(1, (2.0, None)),
        np.str_("a"),
        np.bool_(True),
        np.complex64(1j),
        np.dtype(">f4"),
        np.float32,
        int,
        torch.Size([2, 3]),
        torch.device("cpu"),
        torch.bfloat16,
        torch.nn.Tanh,
        torch.optim.Adam,
    ],
    ids=lambda value: type(value).__name__,  # a set's repr is another in every process
)
def test_plain_values(value):
    found = again(value)
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, float):
        assert math.copysign(1, found) == math.copysign(1, value)
    if isinstance(value, collections.deque):
        assert found.maxlen == value.maxlen


def test_not_a_number():
    assert math.isnan(again(math.nan))


def test_what_a_module_notes_of_its_version_is_kept():
    """Without it, torch takes the state for one of an older module."""
    state = torch.nn.Sequential(torch.nn.BatchNorm1d(2)).state_dict()
    found = again(state)
    assert type(found) is collections.OrderedDict
    assert found._metadata == state._metadata
    assert found._metadata["0"]["version"] == 2


def test_every_reading_is_of_its_own():
    checkpoint = checkpoints.read(written({"value": {"a": torch.ones(2), "b": np.ones(2)}}))
    first = checkpoint["value"]
    first["a"].zero_()
    first["b"][:] = 0
    assert checkpoint["value"]["a"].tolist() == checkpoint["value"]["b"].tolist() == [1, 1]


def test_names_that_safetensors_has_for_itself():
    value = {"__metadata__": torch.ones(1), "\ud800": torch.zeros(1)}
    assert again(value) == value
    file = written({"__metadata__": torch.ones(1)})
    assert checkpoints.read(file)["__metadata__"].tolist() == [1]


@pytest.mark.parametrize(
    "value",
    [
        np.longdouble(1),
        np.ones(2, np.longdouble),
        np.array(["a"]),
        np.datetime64("2020-01-01"),
        torch.ones(2).to_sparse(),
        collections.Counter("ab"),
        lambda x: x,
        Mine,
        Mine(),
        enum.Flag("Made", "A B", module="nowhere")["A"],
    ],
    ids=lambda value: type(value).__name__,
)
def test_saving_what_only_trust_reads_is_a_warning(value):
    """It names the place, and what can be done."""
    with pytest.warns(UserWarning, match=r"value\.inner is saved as .* trust=True reads value"):
        file = written({"value": {"inner": value, "other": 3}})
    with pytest.raises(CheckpointError, match=r"value\.inner: .* trust=True") as raised:
        checkpoints.read(file)["value"]
    assert "custom_objects" not in str(raised.value)


@pytest.mark.parametrize("described", [{"$enum": ["Colour", "RED"]}, {"$named": ["Point", [1]]}])
def test_data_of_classes_that_the_program_does_not_have(described, monkeypatch):
    tag, (name, content) = next(iter(described.items()))
    whole = {tag: [f"{__name__}:{name}", content]}
    assert checkpoints.read(forged(whole))["value"] is not None
    monkeypatch.delitem(sys.modules, __name__)
    with pytest.raises(CheckpointError, match="import its module first"):
        checkpoints.read(forged(whole))["value"]
    for other in ("os:environ", "os:system", "os:path.join", "builtins:tuple", "torch:Size", 5):
        with pytest.raises(CheckpointError):
            checkpoints.read(forged({tag: [other, content]}))["value"]


def test_names_of_places_do_not_collide():
    found = again({"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}})
    assert (float(found["a.b"]), float(found["a"]["b"])) == (0, 1)


def test_what_nothing_describes_needs_trust():
    entries = {"value": {"rate": lambda x: 2 * x, "steps": 3}}
    with pytest.raises(CheckpointError, match=r"value\.rate: a pickled builtins\.function; trust="):
        checkpoints.read(written(entries))["value"]
    assert checkpoints.read(written(entries), trust=True)["value"]["rate"](4) == 8
    kept = checkpoints.read(written(entries)).without("value", {"rate": 7, "absent": 8})
    assert kept == {"rate": 7, "steps": 3}


def test_reading_one_entry_makes_no_other():
    found = checkpoints.read(written({"a": 1, "b": lambda: None}))
    assert list(found) == ["a", "b"]
    assert found["a"] == 1
    assert "b" in found


@pytest.mark.parametrize("kind", [Mine, json.JSONDecoder, collections.Counter])
def test_classes_of_other_packages_need_trust(kind):
    with pytest.warns(UserWarning, match="refuses"):
        file = written({"value": kind})
    with pytest.raises(CheckpointError, match="may name"):
        checkpoints.read(file)["value"]
    file.seek(0)
    assert checkpoints.read(file, trust=True)["value"] is kind
