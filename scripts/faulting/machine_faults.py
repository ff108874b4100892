"""What disks, users, schedulers and other processes do to a run."""

import os
import resource
import shutil
import signal
import time
from pathlib import Path

from faulting import checks, environments
from faulting.process import CONTINUE, LONG, ROLLOUT, Befallen, Fault, ended_by

SAVED, EVALUATED = "last_model.zip", "evaluations.npz"
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
SMALL = 2_000  # bytes: less than any checkpoint, more than a few rows
TOO_LARGE = "cannot be written (File too large)"


def disk_full_for_a_while(place: Path) -> Befallen:
    """No file may grow beyond some bytes, until one may again."""
    run = _begun(place)
    before = checks.last_steps(run.run)
    _limit(run, SMALL)
    time.sleep(3)
    if run.process.poll() is not None:
        run.wrong.append("the run has ended")
    if checks.last_steps(run.run) < before:
        run.wrong.append("the last good checkpoint is gone")
    _limit(run, resource.RLIM_INFINITY)
    run.ends(0, says=[f"{run.run / SAVED} {TOO_LARGE}"])
    run.look()
    _look_for_rows(run)
    return run


def disk_full(place: Path) -> Befallen:
    """The same, and nobody makes room before the run has ended."""
    run = _begun(place)
    _limit(run, SMALL)
    run.ends(1, says=[f"{run.run / SAVED} {TOO_LARGE}", f"{run.run / SAVED}, of step", CONTINUE])
    run.go_on()
    return run


def output_full(place: Path) -> Befallen:
    """Tables, warnings and the summary go to a full disk."""
    with open("/dev/full", "w") as full:
        run = Befallen(place, environments.Sound, "--verbose", "1", stdout=full)
        run.ends(0)
    run.look()
    _look_for_rows(run)
    return run


def terminated(place: Path) -> Befallen:
    """What a scheduler sends before it kills."""
    run = _begun(place)
    run.process.send_signal(signal.SIGTERM)
    run.ends(128 + signal.SIGTERM, says=["continue with"])
    run.go_on()
    return run


def interrupted_twice(place: Path) -> Befallen:
    """Ctrl-C, and again since it takes too long."""
    run = _begun(place)
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    run.process.send_signal(signal.SIGINT)
    run.ends(*ended_by(signal.SIGINT))
    run.go_on()
    return run


def removed(place: Path) -> Befallen:
    """Somebody tidies up."""
    run = _begun(place, EVALUATED)
    directory = run.run
    shutil.rmtree(directory, ignore_errors=True)  # the run may be making it anew already
    run.ends(0, says=[f"{directory} was removed"])
    run.look()
    _look_for_rows(run)
    if checks.evaluations(directory)[:1] != [ROLLOUT * 2]:
        run.wrong.append("evaluations are lost")
    return run


def taken(place: Path) -> Befallen:
    """Somebody tidies up and begins another run, which gets the name that has become free."""
    run = _begun(place)
    directory = run.run
    other = place / "other"  # whole before it is seen: the run looks at every rollout
    other.mkdir()
    (other / ".lock").touch()
    (other / SAVED).write_text("another's")
    directory.rename(place / "gone")
    other.rename(directory)
    run.ends(1, says=["another run has taken its place"])
    if sorted(path.name for path in directory.iterdir()) != [".lock", SAVED]:
        run.wrong.append("it wrote into the directory of another run")
    if (directory / SAVED).read_text() != "another's":
        run.wrong.append("it wrote over the checkpoint of another run")
    return run


def two_runs(place: Path) -> Befallen:
    """A second process wants to go on with a run that is going on."""
    run = _begun(place)
    second = run.resumed()
    said, _ = second.communicate()
    if second.returncode != 2 or "another run (process" not in said:
        run.wrong.append(f"the second was not refused: {second.returncode}, {said[-200:]}")
    if run.process.poll() is not None:
        run.wrong.append("the first had ended before")
    run.process.send_signal(signal.SIGTERM)
    run.ends(128 + signal.SIGTERM)
    run.go_on()
    return run


def rank_killed(place: Path) -> Befallen:
    """One of two ranks is gone: the other must not wait for it."""
    run = _begun(place, launcher=TORCHRUN)
    ranks = _children(run.process.pid)
    os.kill(ranks[-1], signal.SIGKILL)
    run.ends(1, within=60)
    run.wrong += [f"rank {pid} is still there" for pid in ranks if Path(f"/proc/{pid}").exists()]
    run.go_on()
    return run


def _begun(place: Path, *files: str, **options: tuple[str, ...]) -> Befallen:
    run = Befallen(place, steps=LONG, **options)  # type: ignore[arg-type]
    run.reach(SAVED, *files, rows=5)
    return run


def _look_for_rows(run: Befallen) -> None:
    logged = set(checks.progress(run.run))
    if any(steps not in logged for steps in range(ROLLOUT, run.steps, ROLLOUT)):
        run.wrong.append("rows of progress.csv are lost")
    if checks.last_steps(run.run) < run.steps:
        run.wrong.append("the run did not reach its end")


def _limit(run: Befallen, size: int) -> None:
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _children(process: int) -> list[int]:
    """Processes that a process has started, oldest first."""
    return [
        int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


SAVES = "saved after the update; --resume goes on"

FAULTS = [
    Fault("disk full for a while", "a warning; all is written later", disk_full_for_a_while),
    Fault("disk full to the end", "exit code 1, file named, last checkpoint whole", disk_full),
    Fault("standard output on a full disk", "the run goes on to its end", output_full),
    Fault("SIGTERM", f"exit code 143, {SAVES}", terminated),
    Fault("SIGINT twice", "exit code 130 or by the signal, nothing torn", interrupted_twice),
    Fault("the run's directory is removed", "it is made anew, nothing is lost", removed),
    Fault("… and another run takes its name", "exit code 1, the other is left alone", taken),
    Fault("two runs into one directory", "the second: exit code 2; the first goes on", two_runs),
    Fault("a rank of two is killed", "the other ends within 60 s; --resume goes on", rank_killed),
]
