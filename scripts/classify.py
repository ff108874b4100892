"""Trains a classifier or an autoencoder with any optimizer of the library.

    python scripts/classify.py --data digits --optimizer natural-gradient
    python scripts/classify.py --data fashion-mnist --data-dir DIR --model autoencoder --epochs 20
    python scripts/classify.py --optimizer sgd --lr 0.1 --option nesterov=true --schedule cosine
    python scripts/classify.py --resume runs/digits_mlp_natural-gradient_1 --epochs 20
    python scripts/classify.py --objective f1 --optimizer mle-guided-search --seeds 5
    torchrun --nproc-per-node 2 scripts/classify.py --optimizer kfac --batch-size 256

Exit codes: 0 finished, 1 the training failed, 2 the configuration cannot work, 128 + n stopped by
signal n (130 is Ctrl-C).
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

from classification import comparison, options, plots, report, session
from classification.checkpoints import LAST
from classification.loop import Loop
from classification.progress import ProgressBar
from common.failures import Failure, configuration_errors, plain_warnings, training_errors
from common.interrupts import Interrupts
from common.ranks import Ranks, join, launched
from common.run_directory import PLOT


def main(argv: Sequence[str]) -> int:
    """Trains as the command line says; returns the exit code."""
    plain_warnings()
    try:
        with launched().one_voice(), configuration_errors():
            chosen = options.parse(argv)
        with join(chosen.device) as ranks:
            return run_as(chosen, ranks)
    except Failure as failure:
        return failure.report()


def run_as(chosen: options.Options, ranks: Ranks) -> int:
    """Trains as one of the ranks, of which the first speaks; returns the exit code."""
    if chosen.seeds is not None:
        with configuration_errors():
            session.refuse_ranks(ranks, "--seeds compares runs of one process")
        return compare(chosen)
    with configuration_errors():
        run = session.start(chosen, ranks)
    loop, code = train(run)
    if code == 0 and ranks.is_main:
        report.print_summary(loop)
    return code


def train(run: session.Run) -> tuple[Loop, int]:
    """Trains to the end, whichever that is; returns what trained, and the exit code."""
    with run.held, Interrupts() as interrupts:
        loop = Loop(run, interrupts)
        bar = ProgressBar(loop) if run.options.progress_bar and run.ranks.is_main else None
        try:
            with training_errors(lambda: f"the last good checkpoint: {run.directory / LAST}"):
                loop.train(after_step=bar.update if bar else lambda: None)
        finally:
            if bar:
                bar.stop()
            run.logger.close()
            if run.ranks.is_main and run.progress.best is not None:  # an evaluation to draw
                plots.draw([run.directory], run.directory / PLOT)
    if loop.interrupted:
        if run.ranks.is_main:
            report.print_interrupted(run)
        return loop, 128 + loop.interrupted
    return loop, 0


def compare(chosen: options.Options) -> int:
    """Trains what a comparison consists of and prints its table; returns the exit code."""
    results, plan = comparison.Results(chosen), comparison.planned(chosen)
    with configuration_errors():
        comparison.check(plan)
    finished = False
    try:
        for role, one in plan:
            with configuration_errors():
                run = session.start(replace(one, start_from=results.start(role)))
            loop, code = train(run)
            if code:
                return code
            results.add(role, run.directory, loop.evaluation)
        finished = True
    finally:
        if not finished:
            results.print_unfinished(len(plan))
    results.print_table()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
