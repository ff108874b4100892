"""The checkpoints of a run, and its graceful end."""

import math
import sys
import time
from typing import ClassVar

from common.failures import TRAINING, Failure
from common.files import tolerated
from common.interrupts import Interrupts
from common.ranks import ALONE, Ranks
from stable_baselines3.common.callbacks import BaseCallback

from envs import load_normalization_state, normalization_state
from envs.normalization_state import NormalizationState
from training.home import Home
from training.run_directory import LAST


class Checkpoints(BaseCallback):
    """Keeps last_model.zip up to date, and ends the training on a signal.

    It saves between an update and the next rollout, where nothing is half done and from where a
    continued run is the uninterrupted one; the first time before the first rollout. On a signal,
    too, the training ends there. Where a rollout is given up (an error, or one that a signal did
    not see the end of within PATIENCE) what is saved is the agent as it was before it, without the
    environments: training goes on from there in new episodes. A checkpoint that cannot be written
    is tried again before every rollout.

    On several ranks all have one of these. They decide together, and rank 0 writes.

    Args:
        home: The run's directory.
        every: Environment steps between checkpoints; 0 for none during the training.
        interrupts: Where signals arrive.
        command: That goes on with the run.
        ranks: What this process is among those that train together.

    Attributes:
        path: Of the checkpoint.
        signal: That ends the training, of whichever rank.
    """

    # Seconds that a signal leaves to a rollout under way, counted from its next step. An update is
    # waited for, and so is a step: nothing else can be done with an environment that hangs.
    PATIENCE: ClassVar[float] = 20.0

    def __init__(
        self,
        home: Home,
        every: int,
        interrupts: Interrupts,
        command: str,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        self.home = home
        self.ranks = ranks
        self.path = home.directory / LAST
        self.every = every
        self.interrupts = interrupts
        self.command = command
        self.signal: int | None = None
        self._saved_at: int | None = None
        self._kept = self.path.exists()
        self._ended = False
        self._deadline = math.inf
        self._collecting = False
        self._began_at: int | None = None
        self._normaliser: NormalizationState | None = None

    def save(self) -> None:
        """Saves now, which has to be between an update and the next rollout."""
        if self.ranks.is_main:
            self.home.ensure()
        self.model.save(self.path, include=["environments"])
        self._saved_at, self._kept = self.model.num_timesteps, True

    def finish(self) -> None:
        """Saves what the training ended with, unless that was done before its last step.

        Raises:
            Failure: If it cannot be written.
        """
        if self._ended:
            self.model.num_timesteps = self._began_at  # the step that ended it is lost
            return
        late = time.monotonic() >= self._deadline
        received = self.interrupts.received or 0
        collecting, late, received = self.ranks.largest(self._collecting, late, received)
        self.signal = int(received) or None
        if collecting and late:
            print("the rollout is given up: its samples are lost", file=sys.stderr)
            self._go_back()
        try:
            if not collecting:
                self.save()
            else:  # given up, or the goal was reached in the middle of a rollout
                self._save_agent()
            self._began_at = self.model.num_timesteps  # nothing is under way
        except OSError as error:
            raise Failure(
                f"the last checkpoint cannot be written ({_reason(error)}): {self._left()}",
                TRAINING,
            ) from error

    def rescue(self) -> str:
        """Saves after an error what there was before the rollout that had it, if there is any.

        The environments' state is left out: it may be what caused the error, and would again.

        Returns:
            What is saved, and how to go on.
        """
        if self.ranks.size > 1:  # only together could they save where all their environments are
            return self._left() if self.ranks.is_main else "the first rank has the checkpoint"
        saved = not self._collecting and self._saved_at == self.model.num_timesteps
        if self._began_at is None or saved:
            return self._left()
        try:
            self._go_back()
            self._save_agent()
        except Exception as error:  # the one that is on its way says more
            return f"and the agent cannot be saved ({_reason(error)}): {self._left()}"
        return (
            f"--resume goes on from before this rollout, after {self.model.num_timesteps:,} steps: "
            f"{self.path}; continue with: {self.command}"
        )

    def _go_back(self) -> None:
        """Takes back what the rollout under way, or the update after it, has counted and seen."""
        self.model.num_timesteps = self._began_at
        normaliser = self.model.get_vec_normalize_env()
        if normaliser is not None and self._normaliser is not None:
            load_normalization_state(normaliser, self._normaliser)

    def _save_agent(self) -> None:
        """Saves without the environments' state; no other rank is needed for that."""
        if self.ranks.is_main:
            self.home.ensure()
            self.model.save(self.path)
            self._saved_at, self._kept = self.model.num_timesteps, True

    def _left(self) -> str:
        if not self._kept:
            return f"there is no earlier one; begin again with: {self.command}"
        step = "" if self._saved_at is None else f", of step {self._saved_at:,},"
        return f"{self.path}{step} is whole; continue with: {self.command}"

    def _on_training_start(self) -> None:
        if self._kept:
            self._saved_at = self.model.num_timesteps

    def _on_step(self) -> bool:
        if self._ended:
            return False
        if self.interrupts.received is None:
            return True
        if self._deadline == math.inf:
            self._deadline = time.monotonic() + self.PATIENCE
            print("ending after this update; again to end at once", file=sys.stderr)
        return time.monotonic() < self._deadline

    def _on_rollout_start(self) -> None:
        self._collecting, self._began_at = True, self.model.num_timesteps
        normaliser = self.model.get_vec_normalize_env()
        self._normaliser = None if normaliser is None else normalization_state(normaliser)
        due = self.ranks.is_main and self._due()
        due, received = self.ranks.largest(due, self.interrupts.received or 0)
        if not (due or received):
            return
        failed = True
        with tolerated(self.path):
            self.save()
            failed = False
        (failed,) = self.ranks.largest(failed)
        if received and not failed:
            self._ended, self.signal = True, int(received)

    def _due(self) -> bool:
        """Whether it is time for a checkpoint, or the last one has gone."""
        self.home.ensure()
        if self._kept and not self.path.exists():
            return True
        return bool(self.every) and (
            self._saved_at is None or self._began_at - self._saved_at >= self.every
        )

    def _on_rollout_end(self) -> None:
        self._collecting = False


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
