"""One run of train.py that a fault befalls, and the run that goes on from it."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faulting import checks, environments
from faulting.trained import run_in, start

SHORT, LONG = 2_048, 32_768  # steps of a run; a long one gives time to do something to it
ROLLOUT = 256  # steps, of two environments
PATIENCE = 120.0  # seconds until something must have happened
ARGUMENTS = ("--num-envs", 2, "--n-steps", ROLLOUT // 2, "--save-freq", 2 * ROLLOUT)
ARGUMENTS += ("--eval-freq", 2 * ROLLOUT, "--eval-episodes", 2)
CONTINUE = "continue with: "


class Befallen:
    """A run of TRPO, in a directory of its own.

    Args:
        place: Empty directory, where the run's is made.
        kind: Class of its environment.
        *words: More of its command line.
        launcher: Module and arguments that start it, instead of Python alone.
        steps: Of the run, and of the one that goes on.
        **options: Of Popen.

    Attributes:
        process: Its process.
        wrong: What did not hold, in words.
        seen: What was observed.
        output: All that it said, when it has ended.
    """

    def __init__(
        self,
        place: Path,
        kind: type = environments.Sound,
        *words: object,
        launcher: Sequence[str] = (),
        steps: int = SHORT,
        **options: Any,
    ) -> None:
        self.place, self.steps, self.launcher = place, steps, launcher
        self.variables = {environments.MARK: str(place / "mark")}
        self.wrong: list[str] = []
        self.seen: list[str] = []
        self.output = ""
        self.env = f"faulting.environments:{kind.__name__}-v0"
        run = (
            "trpo",
            "--env",
            self.env,
            "--total-timesteps",
            steps,
            "--track-dir",
            place,
            *ARGUMENTS,
        )
        self.process = self._started(*run, *words, **options)

    @property
    def run(self) -> Path:
        """Its directory."""
        found = run_in(self.place)
        if found is None:
            raise TimeoutError(f"the run has made no directory: {self.output[-300:]}")
        return found

    def reach(self, *files: str, rows: int = 0) -> None:
        """Waits until files are there, and rows in progress.csv.

        Raises:
            TimeoutError: If that takes too long, or the run has ended.
        """
        deadline = time.monotonic() + PATIENCE
        while not self._has(files, rows):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self.output, _ = self.process.communicate()
                raise TimeoutError(f"the run did not get so far: {self.output[-300:]}")
            time.sleep(0.02)

    def _has(self, files: Iterable[str], rows: int) -> bool:
        found = run_in(self.place)
        if found is None or not all((found / name).exists() for name in files):
            return False
        return not rows or (found / "progress.csv").read_text().count("\n") > rows

    def ends(self, *codes: int, says: Sequence[str] = (), within: float = PATIENCE) -> None:
        """Waits for the end, and looks at the exit code and what was said."""
        try:
            self.output, _ = self.process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.output, _ = self.process.communicate()
            self.wrong.append(f"the run had not ended after {within:g} s")
        self.output = self.output or ""
        self.seen.append(f"exit code {self.process.returncode}")
        if self.process.returncode not in codes:
            self.wrong.append(f"exit code {self.process.returncode}: {self.output[-300:]}")
        self.wrong += [f"it did not say {said!r}" for said in says if said not in self.output]

    def look(self) -> None:
        """Looks at what it left."""
        wrong = checks.after_fault(self.run)
        self.wrong += wrong
        if not wrong:
            self.seen.append(
                f"all is readable, checkpoint of {checks.last_steps(self.run):,} steps"
            )

    def go_on(self) -> None:
        """Looks at what it left, goes on from there, and looks again."""
        self.look()
        if self.wrong:
            return
        last = checks.last_steps(self.run)
        before = [steps for steps in checks.progress(self.run) if steps <= last]
        process = self.resumed()
        output, _ = process.communicate()
        if process.returncode:
            self.wrong.append(f"--resume ended with {process.returncode}: {output[-300:]}")
        wrong = checks.goes_on(before, self.run, self.steps)
        self.wrong += wrong
        if not wrong:
            self.seen.append(f"continued to {checks.last_steps(self.run):,}")

    def resumed(self) -> subprocess.Popen[str]:
        """Starts a process that goes on with it."""
        return self._started("trpo", "--resume", self.run, "--total-timesteps", self.steps)

    def _started(self, *words: object, **options: Any) -> subprocess.Popen[str]:
        return start(*words, launcher=self.launcher, variables=self.variables, **options)


def ended_by(number: signal.Signals) -> tuple[int, int]:
    """Exit codes of a process that a signal ended: it said so, or Python did."""
    return 128 + number, -number


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
        name: What happens.
        promised: What is to come of it.
        happen: Lets it happen in an empty directory, and looks.
    """

    name: str
    promised: str
    happen: Callable[[Path], Befallen]
