"""The attributions as numbers."""

import csv
from pathlib import Path

import numpy as np
from common.files import replacing
from rich.table import Table

from explanation.attribution import Explanation
from explanation.episodes import Episodes


def write_npz(path: Path, names: list[str], played: Episodes, found: Explanation) -> None:
    """Writes all arrays, one row a step."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            attributions=found.attributions,
            decisions=found.decisions,
            changes=found.changes,
            decision_names=np.array(found.names),
            baseline=found.baseline,
            coordinate_names=np.array(names),
            **vars(played),
        )


def write_csv(path: Path, names: list[str], found: Explanation) -> None:
    """Writes the ranking: mean |attribution| of each coordinate, in all and for each decision."""
    importance = found.importance()
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rank", "coordinate", "share", "mean_abs", *found.names])
        for rank, i in enumerate(found.order(), 1):
            own = importance[:, i]
            share = own.sum() / max(importance.sum(), 1e-12)
            writer.writerow([rank, names[i], *(f"{v:.6g}" for v in (share, own.sum(), *own))])


def table(names: list[str], found: Explanation, top: int) -> Table:
    """Makes a table of the first coordinates."""
    made = Table("coordinate", title="What drives the action", title_justify="left")
    for column in ("share", "mean |attribution|"):
        made.add_column(column, justify="right")
    several = len(found.names) > 1
    if several:
        made.add_column("most for")
    importance = found.importance()
    total = max(float(importance.sum()), 1e-12)
    for i in found.order()[:top]:
        own = importance[:, i]
        cells = [f"{own.sum() / total:.1%}", f"{own.sum():.3g}"]
        made.add_row(names[i], *cells, *([found.names[int(own.argmax())]] if several else []))
    return made
