"""Checkpoints whose bytes somebody, or a disk, has changed."""

import io
import time
from pathlib import Path

import numpy as np
from rich.progress import track

from agents import TRPO
from faulting.report import Row
from faulting.trained import finished, run_in


def rows(place: Path, times: int, seed: int) -> list[Row]:
    """Changes a checkpoint in many ways and loads what comes of it.

    Args:
        place: Empty directory to work in.
        times: Changed files.
        seed: Of the changes.

    Returns:
        One row.
    """
    finished("trpo", "--env", "CartPole-v1", "--total-timesteps", 2048, "--track-dir", place)
    run = run_in(place)
    assert run is not None
    whole = (run / "last_model.zip").read_bytes()
    draw = np.random.default_rng(seed)
    refused, slowest, others = 0, 0.0, []
    for _ in track(range(times), "changed checkpoints"):
        began = time.monotonic()
        try:
            TRPO.load(io.BytesIO(_changed(whole, draw)), device="cpu")
        except ValueError:
            refused += 1
        except Exception as error:
            others.append(repr(error))
        slowest = max(slowest, time.monotonic() - began)
    seen = f"{refused:,} of {times:,} refused, the slowest after {slowest:.2f} s"
    seen += f"; others: {others[:3]}" if others else ""
    return [Row(f"{times:,} changed checkpoints", "each a ValueError", seen, refused == times)]


def _changed(whole: bytes, draw: np.random.Generator) -> bytes:
    """Bytes flipped, cut out, put in, exchanged, or the end gone; never the file itself."""
    start, length = int(draw.integers(len(whole))), int(draw.integers(1, 200))
    put = draw.bytes(length)
    kind = draw.integers(5)
    if kind == 0:
        changed = bytearray(whole)
        changed[start] ^= 1 << int(draw.integers(8))
        return bytes(changed)
    if kind == 1:
        return whole[:start] + whole[start + length :]
    if kind == 2:
        return whole[:start] + put + whole[start:]
    if kind == 3:
        return whole[:start]
    changed = whole[:start] + put + whole[start + length :]
    return changed if changed != whole else b""
