"""The training loop, which is the same for every optimizer and every model."""

import math
import time
from collections.abc import Callable

import torch
from common import seeds
from common.interrupts import Interrupts
from torch import Tensor

from classification import checkpoints
from classification.checkpoints import BEST, LAST
from classification.data import Samples
from classification.session import Run
from npg.errors import NumericalError
from npg.optim import train_step

EVALUATION_BATCH = 2048

# Of the learning rate, by the share of the run that is done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: 0.5 * (1.0 + math.cos(math.pi * share)),
}


class Loop:
    """Trains a run to its end, or until a signal.

    Args:
        run: What to train.
        interrupts: Where signals arrive.

    Attributes:
        evaluation: The last evaluation: loss and figures, by name.
        loss: Training loss of the last step.
        interrupted: The signal that ended the training, on whichever rank it arrived; 0 is none.
    """

    def __init__(self, run: Run, interrupts: Interrupts) -> None:
        self.run = run
        self.interrupts = interrupts
        self.evaluation: dict[str, float] = {}
        self.loss = math.nan
        self.interrupted = 0
        self._evaluated_at = -1
        self._order: tuple[int, Tensor] | None = None
        # In the groups, as torch's schedulers do, they are in the checkpoint, too.
        self._rates = [group.setdefault("initial_lr", group["lr"]) for group in self._groups]

    @property
    def _groups(self) -> list[dict]:
        return self.run.optimizer.param_groups

    def train(self, after_step: Callable[[], None]) -> None:
        """Trains, evaluates and saves.

        Args:
            after_step: Called after every step.

        Raises:
            NumericalError: If a loss or a parameter is not finite; the last checkpoint then holds
                the last state that was.
        """
        run, progress = self.run, self.run.progress
        every = run.options.eval_freq
        if every is None:
            every = run.steps_per_epoch
        self.save()  # something to name should the first steps go wrong
        while self._goes_on():
            self._step(run.share)
            if every and progress.step % every == 0:
                self.evaluate()
            after_step()
        if not self.interrupted and self._evaluated_at != progress.step:
            self.evaluate()
        self.save()

    def _goes_on(self) -> bool:
        """Whether there is another step to take, on which all ranks agree."""
        progress, received = self.run.progress, self.interrupts.received or 0
        progress.seconds, signal = self.run.ranks.largest(progress.seconds, received)
        self.interrupted = int(signal)
        return not self.interrupted and self.run.share < 1

    def save(self, name: str = LAST) -> None:
        """Saves a checkpoint now; all ranks call this, since optimizers may have to gather."""
        run = self.run
        entries = checkpoints.entries(run.model, run.optimizer, run.progress)
        if run.ranks.is_main:
            checkpoints.write(run.directory / name, entries)

    def evaluate(self) -> None:
        """Measures the model on the test data, logs that, and saves the model."""
        run, progress = self.run, self.run.progress
        self.evaluation = measured(run, run.data.test)
        loss, merit = self.evaluation["loss"], self.evaluation[run.task.metric]
        if not math.isfinite(loss):
            raise NumericalError(f"the test loss is {loss} after step {progress.step:,}")
        self._evaluated_at = progress.step
        record = run.logger.record
        record("time/step", progress.step)
        record("time/epoch", progress.step / run.steps_per_epoch)
        record("time/seconds", progress.seconds)
        record("train/loss", progress.loss_sum / max(progress.loss_count, 1))
        record("train/lr", self._groups[0]["lr"])
        for name, value in self.evaluation.items():
            record(f"test/{name}", value)
        run.logger.dump(progress.step)
        progress.loss_sum, progress.loss_count = 0.0, 0
        sign = 1 if run.task.larger_is_better else -1
        if progress.best is None or sign * merit > sign * progress.best:
            progress.best = merit
            self.save(BEST)
        self.save()

    def _step(self, share: float) -> None:
        run, progress = self.run, self.run.progress
        factor = SCHEDULES[run.options.schedule](share)
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate * factor
        started = time.perf_counter()
        batch = self._batch(progress.step)

        def forward() -> tuple[Tensor, Tensor]:
            output = run.replica(batch.inputs)
            return run.objective.loss(output, batch), output

        searched = run.objective.searched
        loss = train_step(
            run.optimizer, forward, None if searched is None else lambda out: searched(out, batch)
        )
        self.loss = run.ranks.total(loss)[0] / run.ranks.size
        progress.seconds += time.perf_counter() - started
        progress.step += 1
        if not math.isfinite(self.loss):
            raise NumericalError(f"the training loss is {self.loss} at step {progress.step:,}")
        progress.loss_sum += self.loss
        progress.loss_count += 1

    def _batch(self, step: int) -> Samples:
        """Returns this rank's samples of a step.

        Epochs are shuffled by the run's seed and their number, the same on every rank.
        """
        train, size = self.run.data.train, self.run.batch_size
        epoch, number = divmod(step, self.run.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            seed = seeds.derived(self.run.options.seed, seeds.ORDER, epoch)
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
            self._order = epoch, order.to(train.labels.device)
        own = size // self.run.ranks.size
        first = number * size + self.run.ranks.rank * own
        return train[self._order[1][first : first + own]]


@torch.no_grad()
def measured(run: Run, data: Samples) -> dict[str, float]:
    """Returns the mean loss per sample and the figures of the task, by name."""
    task, output = run.task, _outputs(run, data.inputs)
    figures = {name: float(measure(output, data)) for name, measure in task.measures.items()}
    return {"loss": float(task.loss(output, data)), **figures}


def _outputs(run: Run, inputs: Tensor) -> Tensor:
    """What the model makes of all inputs, of which every rank takes its share."""
    run.model.eval()
    own = inputs.tensor_split(run.ranks.size)[run.ranks.rank]
    output = torch.cat([run.model(part) for part in own.split(EVALUATION_BATCH)])
    run.model.train()
    return run.ranks.joined(output, len(inputs))
