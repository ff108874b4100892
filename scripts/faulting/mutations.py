"""Checkpoints whose bytes somebody, or a disk, has changed."""

import copy
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from agents import TRPO
from faulting.report import Row
from faulting.trained import finished, run_in
from npg import checkpoints
from npg.checkpoints.archive import write_archive

_DIGITS = 64  # of the SHA-256 that ends a checkpoint


def rows(place: Path, times: int, seed: int) -> list[Row]:
    """Changes a checkpoint in many ways and loads what comes of it.

    Args:
        place: Empty directory to work in.
        times: Changed files.
        seed: Of the changes.

    Returns:
        A row for damage, which the SHA-256 at the end tells, and one for malice, which writes
        the right one.
    """
    finished("trpo", "--env", "CartPole-v1", "--total-timesteps", 2048, "--track-dir", place)
    run = run_in(place)
    assert run is not None
    whole = (run / "last_model.zip").read_bytes()
    TRPO.load(io.BytesIO(whole), device="cpu")  # the first one imports more than it loads
    draw = np.random.default_rng(seed)
    return [
        _row("changed checkpoints", partial(_changed, whole, draw), times - times // 2),
        _row("changed checkpoints, sealed anew", partial(_resealed, whole, draw), times // 2),
    ]


def _row(name: str, make: Callable[[], bytes], times: int) -> Row:
    """Loads files; one that is sealed anew can be right: another weight, or another step size."""
    refused, loaded, slowest, others = 0, 0, 0.0, []
    for _ in track(range(times), name):
        file = make()
        began = time.monotonic()
        try:
            TRPO.load(io.BytesIO(file), device="cpu")
            loaded += 1
        except ValueError:
            refused += 1
        except Exception as error:
            others.append(repr(error))
        slowest = max(slowest, time.monotonic() - began)
    sealed = "sealed" in name
    seen = f"{refused:,} of {times:,} refused, the slowest after {slowest:.2f} s"
    seen += f"; {loaded:,} loaded" if sealed else ""
    seen += f"; others: {others[:3]}" if others else ""
    held = not others and (sealed or refused == times)
    promised = "each a ValueError" + (", or it is loaded" if sealed else "")
    return Row(f"{times:,} {name}", promised, seen, held)


def _resealed(whole: bytes, draw: np.random.Generator) -> bytes:
    """What somebody would write who changes a file on purpose, with the right SHA-256."""
    kind = draw.integers(3)
    if kind == 0:
        body = _changed(whole[:-_DIGITS], draw)
        return body + hashlib.sha256(body).hexdigest().encode()
    members = checkpoints.members_of(whole, "it", {zipfile.ZIP_STORED}, growth=1)
    if kind == 1:
        name = str(draw.choice(list(members)))
        members[name] = _changed(members[name], draw)
    else:
        values = json.loads(members["values.json"])
        _exchange(values["entries"], draw)
        members["values.json"] = json.dumps(values).encode()
    file = io.BytesIO()
    write_archive(file, members)
    return file.getvalue()


def _exchange(values: dict[str, Any], draw: np.random.Generator) -> None:
    """Puts another value in the place of one, anywhere in a tree."""
    places = [(values, key) for key in values]
    for into, key in places:  # grows
        inner = into[key]
        if isinstance(inner, dict | list):
            places += [
                (inner, k) for k in (inner if isinstance(inner, dict) else range(len(inner)))
            ]
    (into, key), (other, place) = (places[draw.integers(len(places))] for _ in range(2))
    odd = [None, True, -1, 10**30, 1.5, "", "x", [], {}, [[]], {"$float": "nan"}, {"$tuple": []}]
    odd += [{"$class": "torch.nn:Linear"}, {"$tensor": "states.policy.log_std"}, other[place]]
    into[key] = copy.deepcopy(odd[draw.integers(len(odd))])


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
