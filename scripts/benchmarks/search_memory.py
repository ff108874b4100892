"""The most memory that a search ever has, in a process of its own, by the operating system."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from common.memory import peak
from torch import Tensor, nn

from benchmarks.report import Row
from npg.optim import EvolutionStrategies, MLEGuidedSearch

WIDTH, LAYERS, BATCH = 2048, 12, 8
KINDS = ("gradient", "guided", "evolution")


def rows() -> list[Row]:
    """Both searches against a model with its gradients."""
    found = {kind: _measured(kind) for kind in KINDS}
    names = {
        "guided": "guided search",
        "evolution": "evolution strategies, chunk_size=1",
    }
    return [
        Row(
            f"peak memory of {name}, {LAYERS * WIDTH**2 / 1e6:.0f} million parameters",
            f"{found[kind]:.0f} MB",
            f"parameters and gradients {found['gradient']:.0f} MB",
            found[kind] / found["gradient"],
            "<= 2",
        )
        for kind, name in names.items()
    ]


def _measured(kind: str) -> float:
    """MB that one step takes beyond what the libraries take, of the kind named."""
    command = [sys.executable, "-m", "benchmarks.search_memory", kind]
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": f"{root}:{root.parent}"}
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _step(kind: str) -> float:
    small = nn.Linear(4, 4)  # what the first step loads is no memory of the search's
    _take(kind, small, torch.randn(2, 4))
    before = peak()
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    _take(kind, model, torch.randn(BATCH, WIDTH))
    return peak() - before


def _take(kind: str, model: nn.Module, x: Tensor) -> None:
    def loss() -> Tensor:
        value: Tensor = model(x).square().mean()
        return value

    if kind == "guided":
        assert MLEGuidedSearch(model).step(lambda: (v := loss(), v.detach())).accepted
    elif kind == "evolution":
        optimizer = EvolutionStrategies(model, candidates=4, chunk_size=1)
        assert optimizer.step(loss).accepted
    else:
        loss().backward()


if __name__ == "__main__":
    print(_step(sys.argv[1]))
