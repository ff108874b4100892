"""Plays a trained agent, prints its returns, and records it.

    python scripts/evaluate.py runs/trpo_CartPole-v1_1 --episodes 20 --record video.mp4
    python scripts/evaluate.py trpo_hopper.zip --env Hopper-v5

A file may also be a checkpoint of sb3-contrib's TRPO, or, with `--agent`, of Stable-Baselines3's
A2C or PPO. Exit codes: 0 done, 1 the environment gave numbers that are none, 2 there is nothing to
evaluate.
"""

import sys
from collections.abc import Sequence

import numpy as np
import tyro
from common.failures import Failure, configuration_errors, plain_warnings, training_errors
from rich.console import Console
from training.replay import Options, load, play
from training.video import Recording


def main(argv: Sequence[str]) -> int:
    """Evaluates as the command line says; returns the exit code."""
    plain_warnings()
    options = tyro.cli(Options, prog="evaluate.py", description=__doc__, args=argv)
    console = Console(soft_wrap=True, highlight=False)
    try:
        with configuration_errors():
            model, env, description = load(options, rendered=options.record is not None)
            recording = None if options.record is None else Recording(options.record, env)
        with training_errors(lambda: description):
            returns, lengths = play(model, env, options, recording)
    except Failure as failure:
        return failure.report()
    console.print(f"{description}, {options.episodes} episodes", style="bold", markup=False)
    for name, values in (("return", returns), ("length", lengths)):
        console.print(f"  {name}   {_described(values)}", markup=False)
    if recording is not None:
        with configuration_errors():
            recording.write()
        console.print(f"  video    {options.record}", markup=False)
    return 0


def _described(values: np.ndarray) -> str:
    return (
        f"{values.mean():,.1f} ± {values.std():,.1f}   median {np.median(values):,.1f}   "
        f"min {values.min():,.1f}   max {values.max():,.1f}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
