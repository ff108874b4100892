"""Checkpoints in memory: written, read again, forged."""

import io
import json
import warnings

import safetensors.torch

from npg import checkpoints
from npg.checkpoints.archive import write_archive


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
