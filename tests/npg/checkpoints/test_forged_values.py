"""Nothing is read but what is written, however right its seal."""

import io
import json

import pytest
import safetensors.torch
import torch

from npg import checkpoints
from npg.checkpoints.archive import write_archive
from npg.errors import CheckpointError
from tests.npg.checkpoints.helpers import forged, written


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
