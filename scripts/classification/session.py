"""Making, or finding again, all that a run consists of."""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from common import run_directory, seeds
from common.files import remove_unfinished
from common.lock import locked
from common.ranks import Ranks
from stable_baselines3.common.logger import Logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from classification import checkpoints, data, models, options
from classification.checkpoints import BEST, LAST, Progress
from classification.data import Data
from classification.models import Task
from classification.objective import METRICS, Objective, objective_of
from classification.options import Options
from npg import optim
from npg.errors import ConfigurationError

SINGLE = Ranks()

# What a run must have in common with the one that it starts from.
SHARED = ("data", "model", "seed", "imbalance")


@dataclass
class Run:
    """A run that is ready to be trained."""

    options: Options
    directory: Path
    data: Data
    model: nn.Module
    replica: nn.Module
    """The model as it is trained: among several ranks, one whose gradients they average."""
    task: Task
    optimizer: torch.optim.Optimizer
    objective: Objective
    progress: Progress
    logger: Logger
    ranks: Ranks
    held: ExitStack = field(default_factory=ExitStack)
    """To be closed when the run has ended: the lock of its directory."""

    @property
    def batch_size(self) -> int:
        """Samples of a step, of all ranks together; each has as many."""
        samples = self.options.batch_size or len(self.data.train)
        return samples - samples % self.ranks.size

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training data."""
        return len(self.data.train) // self.batch_size

    @property
    def share(self) -> float:
        """How much of the run is done; 1 or more is all of it."""
        shares = []
        if self.options.epochs is not None:
            shares.append(self.progress.step / (self.options.epochs * self.steps_per_epoch))
        if self.options.budget_seconds is not None:
            shares.append(self.progress.seconds / max(self.options.budget_seconds, 1e-9))
        return max(shares)


def start(chosen: Options, ranks: Ranks = SINGLE) -> Run:
    """Loads the data, builds model and optimizer, or loads them; only then makes the directory.

    Args:
        chosen: All options.
        ranks: That train the run together; rank 0 writes.

    Returns:
        The run, with its configuration written and its logs open.

    Raises:
        ConfigurationError: If the options do not go with the data or the run to resume.
    """
    with ExitStack() as held:
        if chosen.resume is not None and ranks.is_main:
            held.enter_context(locked(chosen.resume, "run", "start a new one"))
            remove_unfinished(chosen.resume)
        _check_ranks(chosen, ranks)
        run = build(chosen, load(chosen), ranks)
        last = None if chosen.resume is None else checkpoints.existing(chosen.resume, LAST)
        if last is not None and last.exists():
            run.progress = checkpoints.load(last, run.model, run.optimizer)
        elif chosen.start_from is not None:
            _start_from(chosen.start_from, chosen, run.model)
        if chosen.resume is None:
            names = (chosen.data, chosen.model, chosen.optimizer)
            if ranks.is_main:
                run.directory = run_directory.create(chosen.track_dir, *names)
                held.enter_context(locked(run.directory, "run", "start a new one"))
            run.directory = ranks.shared(run.directory)
        elif run.share < 1:
            if ranks.is_main and last is not None and not last.exists():
                best = checkpoints.existing(chosen.resume, BEST)
                run_directory.begin_anew(chosen.resume, LAST, best.name)
            run.directory = chosen.resume
        else:
            raise ConfigurationError(
                f"the run in {chosen.resume} has done its {run.progress.step:,} steps in "
                f"{run.progress.seconds:.1f} s: give more --epochs, or more --budget-seconds"
            )
        if ranks.is_main:
            options.write(run.directory, chosen)
            resumed_at = None if chosen.resume is None else run.progress.step
            run.logger = run_directory.open_logger(run.directory, False, resumed_at, "time/step")
        run.held = held.pop_all()
    return run


def load(chosen: Options) -> Data:
    """Loads the data that the options name.

    Args:
        chosen: All options.

    Returns:
        The data, on the device.

    Raises:
        ConfigurationError: If there are none, or too few of them for a batch.
    """
    device = _device(chosen.device)
    samples = data.load(chosen.data, chosen.data_dir, chosen.seed, device, chosen.imbalance)
    if chosen.batch_size > len(samples.train):
        raise ConfigurationError(
            f"batch_size must be at most the {len(samples.train):,} training samples, "
            f"got {chosen.batch_size:,}"
        )
    return samples


def _check_ranks(chosen: Options, ranks: Ranks) -> None:
    """Refuses what several ranks cannot share out."""
    if chosen.objective != "loss":
        refuse_ranks(ranks, f"--objective {chosen.objective} is of the whole batch")
    if chosen.batch_size % ranks.size:
        raise ConfigurationError(
            f"batch_size is of all ranks together, and must be a multiple of their number, "
            f"{ranks.size}; got {chosen.batch_size}"
        )


def refuse_ranks(ranks: Ranks, reason: str) -> None:
    """Refuses several ranks.

    Args:
        ranks: How many there are.
        reason: Why one is all that can be.

    Raises:
        ConfigurationError: If there are more.
    """
    if ranks.size > 1:
        raise ConfigurationError(f"{reason}: run it without torchrun, not as {ranks.size} ranks")


def build(chosen: Options, samples: Data, ranks: Ranks = SINGLE) -> Run:
    """Makes model, optimizer and objective.

    Args:
        chosen: All options.
        samples: What :func:`load` returned.
        ranks: That train the model together.

    Returns:
        The run, which writes and logs nothing yet.

    Raises:
        ConfigurationError: If the optimizer or the objective does not go with the model.
    """
    torch.manual_seed(seeds.derived(chosen.seed, seeds.TRAINING))
    model, task = models.build(chosen.model, samples.image_size, samples.classes)
    model.to(samples.train.inputs.device)
    replica = model if ranks.size == 1 else DistributedDataParallel(model)
    optimizer = _optimizer(chosen, replica, task)
    objective = objective_of(chosen.objective, task, optimizer, chosen.draws)
    if chosen.objective != "loss":
        task = replace(task, metric=METRICS[chosen.objective])
    return Run(
        options=chosen,
        directory=Path(),
        data=samples,
        model=model,
        replica=replica,
        task=task,
        optimizer=optimizer,
        objective=objective,
        progress=Progress(),
        logger=Logger(None, []),
        ranks=ranks,
    )


def _optimizer(chosen: Options, model: nn.Module, task: Task) -> torch.optim.Optimizer:
    """Makes the optimizer; the task and the seed go to those that have a use for them."""
    known: dict[str, Any] = {
        "likelihood": task.likelihood,
        "seed": seeds.derived(chosen.seed, seeds.OPTIMIZER),
    }
    given = {name: value for name, value in known.items() if optim.takes(chosen.optimizer, name)}
    arguments = {**given, **chosen.optimizer_arguments()}
    return optim.create(chosen.optimizer, model, chosen.lr, **arguments)


def _start_from(directory: Path, chosen: Options, model: nn.Module) -> None:
    """Gives the model the parameters that a run ended with."""
    before = options.read(directory)
    other = [name for name in SHARED if getattr(before, name) != getattr(chosen, name)]
    if other:
        split = {"data", "seed"} & set(other)
        reason = ", and was trained on what may be test data here" if split else ""
        words = " ".join(f"--{name} {getattr(before, name)}" for name in other)
        raise ConfigurationError(
            f"the run in {directory} has another {' and '.join(other)}{reason}: give {words}"
        )
    checkpoints.load_model(checkpoints.existing(directory, LAST), model)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"--device {name} cannot be used: {reason}") from error
    return device
