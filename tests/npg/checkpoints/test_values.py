"""What is written is what is read, in every bit, and nothing else is read."""

import collections
import io
import json
import math

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
    return checkpoints.read(written({"value": value}))["value"]


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
        collections.deque([1, 2, 3], maxlen=5),
        torch.Size([2, 3]),
        torch.device("cpu"),
        torch.bfloat16,
        torch.nn.Tanh,
        torch.optim.Adam,
    ],
    ids=repr,
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
    with pytest.raises(CheckpointError, match="may name"):
        again(kind)
    assert checkpoints.read(written({"value": kind}), trust=True)["value"] is kind


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
    ],
    ids=repr,
)
def test_descriptions_that_nobody_wrote(described):
    """Their author has the right seal, and gets nothing run."""
    with pytest.raises(CheckpointError):
        checkpoints.read(forged(described, {"t": torch.zeros(2, 3)}))["value"]


def test_depth_without_end():
    deep = '{"format": 1, "entries": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}"
    file = io.BytesIO()
    write_archive(file, {"values.json": deep.encode(), "tensors.safetensors": b""})
    file.seek(0)
    with pytest.raises(CheckpointError):
        checkpoints.read(file)


def test_a_later_format_is_named():
    file = io.BytesIO()
    content = {"values.json": b'{"format": 2, "entries": {}}'}
    write_archive(file, {**content, "tensors.safetensors": safetensors.torch.save({})})
    file.seek(0)
    with pytest.raises(CheckpointError, match="update npg"):
        checkpoints.read(file)
