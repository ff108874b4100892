"""TensorBoard's event files."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import TensorBoardOutputFormat

from common.files import tolerated


class EventFiles(TensorBoardOutputFormat):
    """Writes event files that hide what an earlier process logged after the checkpoint.

    One that cannot be written to, because the disk is full for instance, is given up; a later row
    begins another. What the rows between hold is in progress.csv.

    Args:
        directory: Of the run.
        resumed_at: Steps of the checkpoint that training goes on from; None for a new run.
    """

    def __init__(self, directory: Path, resumed_at: int | None) -> None:
        self.directory = directory
        self._is_closed = False
        self._open(None if resumed_at is None else resumed_at + 1)

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Adds what is logged at a step.

        Args:
            key_values: Names and values.
            key_excluded: By name, the formats that a value is not meant for.
            step: Where on the axis.
        """
        with tolerated(self.directory / "events.out.tfevents"):
            if self.writer is None:
                self._open(None)
            try:
                super().write(key_values, key_excluded, step)
            except OSError:
                self.renew()
                raise

    def renew(self) -> None:
        """Gives the file up; the next row begins another."""
        writer, self.writer = self.writer, None
        if writer is not None:
            with suppress(OSError):
                writer.close()

    def _open(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        before = self._last()
        self.writer = SummaryWriter(log_dir=str(self.directory), purge_step=purge_step)
        if before is not None and self._last() == before:
            # TensorBoard reads files in the order of their names, which within a second are those
            # of process and file: number 10 comes before number 9, and would hide nothing of it.
            self.writer.close()
            time.sleep(1.0)
            self.writer = SummaryWriter(log_dir=str(self.directory), purge_step=purge_step)

    def _last(self) -> Path | None:
        return max(self.directory.glob("events.out.tfevents.*"), default=None)
