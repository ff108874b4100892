"""Trains an agent and keeps everything about the run in one directory.

    python scripts/train.py trpo --env CartPole-v1 --preset
    python scripts/train.py trpo --env HalfCheetah-v5 --total-timesteps 1000000 --num-envs 8
    python scripts/train.py trpo --resume runs/trpo_HalfCheetah-v5_1 --total-timesteps 2000000
    torchrun --nproc-per-node 2 scripts/train.py trpo --env HalfCheetah-v5 --num-envs 4

Ctrl-C and SIGTERM end a run after the update under way, and --resume goes on from there; a second
one ends it at once, and --resume goes on from the last checkpoint.

Exit codes: 0 finished, 1 the training failed, 2 the configuration cannot work, 128 + n stopped by
signal n (130 is Ctrl-C).
"""

import signal
import sys
import time
from collections.abc import Sequence
from functools import partial

from common.failures import Failure, configuration_errors, plain_warnings, training_errors
from common.interrupts import Interrupts
from common.ranks import join, launched
from common.restarts import forget, remember, restarted
from stable_baselines3.common.callbacks import BaseCallback
from training import callbacks, command_line, report, session
from training.checkpoints import Checkpoints
from training.home import Home
from training.progress import ProgressBar
from training.watchdog import Watchdog


def main(argv: Sequence[str]) -> int:
    """Trains as the command line says; returns the exit code."""
    plain_warnings()
    verbose = 0
    try:
        with launched().one_voice(), configuration_errors():
            agent, options = command_line.parse(argv)
            track_dir, verbose = options.track_dir, options.verbose
        with join(options.device) as ranks:
            with configuration_errors():
                words = ranks.shared(restarted(argv, track_dir) if ranks.is_main else [])
                if words != list(argv):
                    agent, options = command_line.parse(words)
                run = session.start(agent, options, ranks)
                if ranks.is_main:
                    remember(run.directory, track_dir)
            with run.held:
                code = train(run)
            if ranks.is_main and code == 0:
                forget(track_dir)
            return code
    except Failure as failure:
        if verbose >= 2:
            raise
        return failure.report()
    except KeyboardInterrupt:
        print("ended at once: what came after the last checkpoint is lost", file=sys.stderr)
        return 128 + signal.SIGINT


def train(run: session.Run) -> int:
    """Trains to the end, whichever that is; returns the exit code."""
    options = run.options
    if not run.ranks.is_main:
        return follow(run)

    def draw() -> None:
        from training import learning_curve  # matplotlib takes half a second

        learning_curve.draw(run.directory, run.agent, options.env, options.seed)

    home = Home(run.directory, run.lock, run.held)
    home.contents.append(partial(session.write_again, run))
    evaluations = callbacks.Evaluations(
        run.eval_env,
        home,
        every=options.eval_freq,
        episodes=options.eval_episodes,
        seed=options.seed,
        stop_at=options.stop_at,
        draw=draw,
    )
    evaluations.go_on(run.resumed_at or 0)
    started = time.monotonic()
    with Interrupts() as interrupts:
        checkpoints, watchdog = guards(run, home, interrupts, report.go_on_command(run))
        beside: list[BaseCallback] = [evaluations, checkpoints, watchdog]
        if options.progress_bar and not options.verbose:
            beside.append(ProgressBar(f"{run.agent.upper()} {options.env}", evaluations))
        try:
            learn(run, checkpoints, watchdog, beside)
        finally:
            for callback in beside:
                if isinstance(callback, ProgressBar):
                    callback.stop()
        checkpoints.finish()
    if checkpoints.signal is not None:
        draw()
        report.print_interrupted(run)
        return 128 + checkpoints.signal
    if not evaluations.reached:
        with training_errors(checkpoints.rescue), watchdog:
            evaluations.final()
    draw()
    report.print_summary(run, evaluations, time.monotonic() - started)
    return 0


def follow(run: session.Run) -> int:
    """Trains as one of the other ranks, which steps its environments and says nothing."""
    home = Home(run.directory, None, run.held)
    with Interrupts() as interrupts:
        checkpoints, watchdog = guards(run, home, interrupts, command="")
        learn(run, checkpoints, watchdog, [checkpoints, watchdog])
        checkpoints.finish()
    return 0 if checkpoints.signal is None else 128 + checkpoints.signal


def guards(
    run: session.Run, home: Home, interrupts: Interrupts, command: str
) -> tuple[Checkpoints, Watchdog]:
    """Makes what every rank has beside its training: what saves it, and ends it if it hangs."""
    options = run.options
    checkpoints = Checkpoints(home, options.save_freq, interrupts, command, run.ranks)
    checkpoints.init_callback(run.model)
    return checkpoints, Watchdog(options.env_timeout, home, options.env, checkpoints.rescue)


def learn(
    run: session.Run, checkpoints: Checkpoints, watchdog: Watchdog, beside: list[BaseCallback]
) -> None:
    """Trains for the steps that are left, or until a callback ends it."""
    with training_errors(checkpoints.rescue), watchdog:
        run.model.learn(
            run.options.total_timesteps - (run.resumed_at or 0),
            callback=callbacks.Callbacks(beside),
            reset_num_timesteps=run.resumed_at is None,
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
