"""Checkpoints: everything that training goes on from."""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common.files import replacing
from torch import nn

from npg import checkpoints
from npg.errors import CheckpointError, NumericalError

BEST, LAST = "best.zip", "last.zip"
# Of what earlier versions wrote with torch.save, and is still read.
EARLIER = ".pt"


@dataclass
class Progress:
    """How far a run has come.

    The order of the data follows from the run's seed and the step, so there is no more to it.
    """

    step: int = 0
    """Steps of the optimizer."""
    seconds: float = 0.0
    """That they took, without evaluations."""
    loss_sum: float = 0.0
    """Of the training losses since the last evaluation."""
    loss_count: int = 0
    """Their number."""
    best: float | None = None
    """Best figure of merit of an evaluation."""


def existing(directory: Path, name: str) -> Path:
    """Finds a checkpoint, also one of an earlier version.

    Args:
        directory: Of the run.
        name: BEST or LAST.

    Returns:
        The file, which may not be there.
    """
    file = directory / name
    earlier = file.with_suffix(EARLIER)
    return earlier if earlier.exists() and not file.exists() else file


def save(
    file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Writes a checkpoint: :func:`entries`, by :func:`write`."""
    write(file, entries(model, optimizer, progress))


def entries(
    model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> dict[str, Any]:
    """Says what a checkpoint holds; all ranks ask together.

    Args:
        model: Whose parameters and buffers are saved.
        optimizer: Whose state is saved.
        progress: Saved, too.

    Returns:
        Tensors and plain values, by name.

    Raises:
        NumericalError: If a parameter is not finite.
    """
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise NumericalError(f"a parameter is not finite after step {progress.step:,}")
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
        "generators": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }


def write(file: Path, entries: dict[str, Any]) -> None:
    """Writes a checkpoint, which takes the file's place when it is whole."""
    with replacing(file) as temporary, open(temporary, "wb") as opened:
        checkpoints.write(opened, entries)


def load(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restores what :func:`save` wrote, torch's own generators included.

    Args:
        file: Checkpoint.
        model: Gets its parameters and buffers.
        optimizer: Gets its state.

    Returns:
        How far the run had come.

    Raises:
        CheckpointError: If there is no checkpoint, or it is damaged or of another model.
    """
    with _reading(file):
        saved = _loaded(file, model)
        optimizer.load_state_dict(saved["optimizer"])
        progress = Progress(**saved["progress"])
        torch.set_rng_state(saved["generators"]["cpu"].cpu())
        if torch.cuda.is_available() and saved["generators"]["cuda"]:
            torch.cuda.set_rng_state_all([state.cpu() for state in saved["generators"]["cuda"]])
    return progress


def load_model(file: Path, model: nn.Module) -> None:
    """Gives a model the parameters and buffers that :func:`save` wrote, and nothing else.

    Args:
        file: Checkpoint.
        model: Gets them.

    Raises:
        CheckpointError: If there is no checkpoint, or it is damaged or of another model.
    """
    with _reading(file):
        _loaded(file, model)


def _loaded(file: Path, model: nn.Module) -> Mapping[str, Any]:
    device = next(model.parameters()).device
    saved: Mapping[str, Any]
    if file.suffix == EARLIER:
        saved = torch.load(file, map_location=device, weights_only=True)
    else:
        saved = checkpoints.read(file, device)
    model.load_state_dict(saved["model"])
    return saved


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Says of which file an error speaks."""
    if not file.is_file():
        raise CheckpointError(f"there is no checkpoint {file}")
    try:
        yield
    except (
        *(CheckpointError, KeyError, RuntimeError, TypeError),
        *(pickle.UnpicklingError, EOFError),  # of an earlier version's
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{file} is damaged, or of another model: {reason}") from error
