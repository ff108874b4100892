"""What is written is what is read, in every bit, and nothing else is read."""

import collections
import enum
import io
import json
import math
import pathlib
import sys
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch

from npg import checkpoints
from npg.checkpoints.archive import write_archive
from npg.errors import CheckpointError


def written(entries) -> io.BytesIO:
    file = io.BytesIO()
    checkpoints.write(file, entries)
    file.seek(0)
    return file


def again(value):
    """Written without a warning, and read without trust."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = written({"value": value})
    return checkpoints.read(file)["value"]


def forged(described, tensors=None) -> io.BytesIO:
    """A file with a right seal around whatever its author liked."""
    file = io.BytesIO()
    values = json.dumps({"format": 1, "entries": {"value": described}})
    tensors = safetensors.torch.save(tensors or {})
    write_archive(file, {"values.json": values.encode(), "tensors.safetensors": tensors})
    file.seek(0)
    return file


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


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        *(torch.complex64, torch.complex128),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3, 5)])
def test_tensors(dtype, shape):
    value = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    found = again(value)
    assert found.dtype is dtype
    assert found.shape == value.shape
    assert torch.equal(found, value)


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "int64", "uint32", "uint8", "bool", ">f4", "float16"]
)
def test_arrays_and_numbers(dtype):
    value = np.arange(6).reshape(2, 3).astype(dtype)
    found = again({"array": value, "number": value[1, 2]})
    np.testing.assert_array_equal(found["array"], value)
    assert found["array"].dtype == value.dtype
    assert found["array"].dtype.str == value.dtype.str
    assert found["array"].flags.writeable
    assert found["number"] == value[1, 2]
    assert type(found["number"]) is type(value[1, 2])


def test_the_order_of_dimensions_in_memory_is_kept():
    """Products round by it: training would not go on bit for bit."""
    images = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    for value in (torch.arange(6.0).reshape(2, 3).T, images, torch.arange(24.0).view(2, 3, 4)):
        found = again(value)
        assert found.stride() == value.stride()
        assert torch.equal(found, value)


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(24.0).reshape(4, 6)[::2, 1::2].T,
        torch.arange(3.0).expand(2, 3),
        torch.tensor([1j, 2, 3]).expand(2, 3),
        torch.tensor([1j, 2, 3])[:, None].expand(3, 2),
        torch.tensor([[1j, 2, 3]] * 2).T,
        torch.tensor([1j, 2]).conj(),
        torch.tensor([1j, 2]).conj().imag,
        torch.zeros(0, 3).T,
        torch.ones(2, 3).T.to(torch.bfloat16),
        torch.tensor([[True, False]]).T,
    ],
    ids=range(10),
)
def test_tensors_that_are_views(value):
    found = again(value)
    assert found.dtype is value.dtype
    assert torch.equal(found, value)
    assert found.is_conj() is found.is_neg() is False


def test_parameters_are_parameters():
    found = again([torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), False)])
    assert [type(p) for p in found] == [torch.nn.Parameter] * 2
    assert [p.requires_grad for p in found] == [True, False]


@pytest.mark.parametrize(
    "value",
    [
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
        np.arange(6)[::-1],
        np.broadcast_to(np.arange(3), (2, 3)),
        np.zeros((0, 3)),
        np.array(2.5),
        np.array([1j, 2], np.complex64),
        np.arange(3, dtype=">c8"),
        np.array([True, False])[::-1],
    ],
    ids=range(9),
)
def test_arrays_of_every_order(value):
    found = again(value)
    np.testing.assert_array_equal(found, value)
    assert (found.dtype.str, found.shape) == (value.dtype.str, value.shape)
    assert np.argsort(found.strides).tolist() == np.argsort(np.copy(value, "K").strides).tolist()


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


def test_tensors_that_share_memory_are_copies():
    whole = torch.arange(6.0)
    found = again({"whole": whole, "part": whole[2:4], "twin": whole})
    found["whole"].zero_()
    assert found["part"].tolist() == [2, 3]
    assert found["twin"].tolist() == whole.tolist()


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


@pytest.mark.parametrize(
    "described",
    [
        {"$class": "os:system"},
        {"$class": "torch.nn:Module.forward"},
        {"$class": "torch.nn.functional:relu"},
        {"$class": "torch.utils.bottleneck.__main__:main"},
        {"$class": "torch.nn.nothing:Nothing"},
        {"$class": "npg.checkpoints.values:pickle.Unpickler"},
        {"$class": 5},
        {"$tensor": "absent"},
        {"$tensor": "t", "order": [0, 0]},
        {"$tensor": "t", "order": [5]},
        {"$array": []},
        {"$dtype": "load"},
        {"$number": ["object", 1]},
        {"$number": 3},
        {"$unknown": 1},
        {"$float": "x"},
        {"$deque": [1]},
        {"$items": [1]},
        {"$set": [[1]]},
        {"$device": "nowhere"},
        {"$size": ["a"]},
        {"$complex": {"$tensor": "t"}},
        {"$pickle": "gASVHAAAAA==", "type": "x"},
        {"$pickle": 3},
        {"$tensor": 5},
        {"$tensor": "t", "order": 5},
        {"$tensor": "t", "order": [1]},
        {"$tensor": "t", "complex": True},
        {"$array": "t", "dtype": "O"},
        {"$array": "t", "dtype": "S100000000"},
        {"$array": "t", "dtype": ">f2"},
        {"$numpy": "O"},
        {"$numpy": "V1000"},
        {"$number": [{"$numpy": "<f4"}, "x"]},
        {"$scalar": "object"},
        {"$ordered": 5},
        {"$bytes": "?"},
        {"$bytearray": 10},
        {"$path": 5},
        {"$range": "abcd"},
        {"$complex": ["a", 1]},
        {"$tuple": 5},
    ],
    ids=lambda value: type(value).__name__,  # a set's repr is another in every process
)
def test_descriptions_that_nobody_wrote(described):
    """Their author has the right seal, and gets nothing run."""
    with pytest.raises(CheckpointError):
        checkpoints.read(forged(described, {"t": torch.zeros(2, 3)}))["value"]


@pytest.mark.parametrize("one", ['{"a":', '{"$tuple":', "["], ids=repr)
@pytest.mark.parametrize("depth", [150, 100_000])
def test_depth_without_end(one, depth):
    end = "]" if one == "[" else "}"
    values = '{"format": 1, "entries": {"value":' + one * depth + "1" + end * depth + "}}"
    file = io.BytesIO()
    tensors = safetensors.torch.save({})
    write_archive(file, {"values.json": values.encode(), "tensors.safetensors": tensors})
    file.seek(0)
    with pytest.raises(CheckpointError, match=r"deep|recursion"):
        checkpoints.read(file)["value"]


def test_what_is_not_read_is_not_written():
    deep: list = []
    for _ in range(150):
        deep = [deep]
    loop: list = []
    loop.append(loop)
    for value in (deep, loop):
        with pytest.raises(CheckpointError, match="contains itself"):
            written({"value": value})


@pytest.mark.parametrize("entries", [3, [], None, "x"])
def test_entries_that_are_no_dictionary(entries):
    file = io.BytesIO()
    values = json.dumps({"format": 1, "entries": entries}).encode()
    tensors = safetensors.torch.save({})
    write_archive(file, {"values.json": values, "tensors.safetensors": tensors})
    file.seek(0)
    with pytest.raises(CheckpointError, match="no entries"):
        checkpoints.read(file)


def test_a_later_format_is_named():
    file = io.BytesIO()
    content = {"values.json": b'{"format": 2, "entries": {}}'}
    write_archive(file, {**content, "tensors.safetensors": safetensors.torch.save({})})
    file.seek(0)
    with pytest.raises(CheckpointError, match="update npg"):
        checkpoints.read(file)
