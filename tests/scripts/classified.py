"""Running classify.py in this process, and what the run left."""

from pathlib import Path

import torch
from classify import main
from common import run_directory

from npg import checkpoints


def classify(track_dir, *words, code=0):
    arguments = ["--track-dir", str(track_dir), "--no-progress-bar", *map(str, words)]
    assert main(arguments) == code
    directories = sorted(path for path in Path(track_dir).iterdir() if path.is_dir())
    return directories[-1] if directories else None


def rows_of(directory):
    """Rows of progress.csv, as numbers, without the clock."""
    return [
        {name: float(value) for name, value in row.items() if name != "time/seconds"}
        for row in run_directory.read_progress(directory)
    ]


def saved(directory, name="last.zip"):
    return dict(checkpoints.read(directory / name))


def described(state):
    """Everything in a checkpoint but the clock, tensors as bytes."""
    if isinstance(state, dict):
        return {name: described(value) for name, value in state.items() if name != "seconds"}
    if isinstance(state, list | tuple):
        return [described(value) for value in state]
    return state.numpy().tobytes() if isinstance(state, torch.Tensor) else state
