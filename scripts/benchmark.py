"""Measures this library against its peers; every figure of docs/benchmarks.md comes from here.

    python scripts/benchmark.py all
    python scripts/benchmark.py throughput --rounds 9

Needs the extra ``benchmark``. Leave the machine alone while it measures.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

Part = Literal[
    "throughput",
    "throughput-ppo",
    "rollout",
    "fisher",
    "kfac",
    "optimizers",
    "autoencoder",
    "newton-cg",
    "kbfgs",
    "kl",
    "minimise",
    "search",
    "ranks",
    "returns",
]


@dataclass
class Options:
    """What to measure."""

    part: tyro.conf.Positional[Part | Literal["all"]]
    """One table, or all of them (returns trains 60 runs and takes hours)."""
    rounds: int = 5
    """Interleaved rounds per figure."""
    returns_dir: Path = Path("runs/benchmark-returns")
    """Where training runs are kept; a finished one is not repeated."""
    agent: Literal["trpo", "a2c", "acktr"] = "trpo"
    """Whose returns are compared."""
    retuned: bool = False
    """Whether returns trains the peer under our presets too, where they differ from rl-zoo's."""
    seconds: float = 60.0
    """Of each optimizer, for autoencoder and kbfgs."""
    data_dir: Path = Path("/usr/share/datasets/fashion-mnist")
    """Fashion-MNIST's files, for autoencoder, kbfgs, optimizers and search; where Debian's
    dataset-fashion-mnist puts them."""
    jobs: int = 2
    """Training runs at a time, one thread each."""


def main(options: Options) -> None:
    """Runs the parts asked for."""
    try:
        from benchmarks import (
            autoencoder,
            fisher_products,
            hessian_free,
            kbfgs,
            kfac_steps,
            kl_bound,
            minimisation,
            optimizers,
            ranks,
            returns,
            rollouts,
            search,
            throughput,
        )
    except ImportError as error:
        raise SystemExit(f"{error}: install the peers with `pip install .[benchmark]`") from error

    parts = {
        "throughput": throughput.run,
        "throughput-ppo": throughput.run_ppo,
        "rollout": rollouts.run,
        "fisher": fisher_products.run,
        "kfac": kfac_steps.run,
        "kl": kl_bound.run,
        "minimise": minimisation.run,
        "newton-cg": hessian_free.run,
        "ranks": ranks.run,
    }
    every = [*parts, "optimizers", "search", "autoencoder", "kbfgs", "returns"]
    for name in every if options.part == "all" else [options.part]:
        command = f"python scripts/benchmark.py {name}"
        if name == "autoencoder":
            command += f" --seconds {options.seconds:g}"
            autoencoder.run(options.seconds, options.data_dir, command)
        elif name == "kbfgs":
            command += f" --seconds {options.seconds:g} --rounds {options.rounds}"
            kbfgs.run(options.seconds, options.rounds, options.data_dir, command)
        elif name in ("optimizers", "search"):
            command += f" --rounds {options.rounds}"
            measured = optimizers if name == "optimizers" else search
            measured.run(options.rounds, options.data_dir, command)
        elif name == "returns":
            command += f" --agent {options.agent}" if options.agent != "trpo" else ""
            command += " --retuned" if options.retuned else ""
            returns.run(options.agent, options.returns_dir, options.jobs, options.retuned, command)
        else:
            parts[name](options.rounds, f"{command} --rounds {options.rounds}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main(tyro.cli(Options, description=__doc__))
