"""The learning curves of `scripts/benchmark.py returns` as a picture for the README."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import trim_mean

COLOURS = {"npg": "#1f6feb", "sb3-contrib": "#8b949e"}
LABELS = {"npg": "npg TRPO", "sb3-contrib": "sb3-contrib TRPO"}


def draw(directory: Path, environments: list[str], output: Path) -> None:
    """Draws training return against environment steps, interquartile mean and range over seeds.

    Args:
        directory: Where the runs' JSON files are.
        environments: One panel each.
        output: PNG to write.
    """
    figure, axes = plt.subplots(1, len(environments), figsize=(4 * len(environments), 3.2))
    for axis, env_id in zip(np.atleast_1d(axes), environments, strict=True):
        for library, colour in COLOURS.items():
            runs = [
                np.array(json.loads(path.read_text())["curve"])
                for path in sorted(directory.glob(f"{library}_{env_id}_*.json"))
            ]
            if not runs:
                continue
            grid = np.linspace(max(r[0, 0] for r in runs), min(r[-1, 0] for r in runs), 150)
            curves = np.stack([np.interp(grid, run[:, 0], run[:, 2]) for run in runs])
            low, high = np.quantile(curves, [0.25, 0.75], axis=0)
            label = f"{LABELS[library]} ({len(runs)} seeds)"
            axis.fill_between(grid / 1000, low, high, color=colour, alpha=0.2, linewidth=0)
            axis.plot(grid / 1000, trim_mean(curves, 0.25), color=colour, label=label)
        axis.set_title(env_id)
        axis.set_xlabel("thousand environment steps")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7, loc="lower right")
    np.atleast_1d(axes)[0].set_ylabel("return of the last 100 episodes")
    figure.tight_layout()
    figure.savefig(output, dpi=150)
    plt.close(figure)
