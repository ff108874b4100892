"""What compare.py can be told about optimizers. Nothing heavy is imported for it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from classification.names import DataName, ModelName

from comparison.execution_options import Execution

Quantity = Literal["loss", "accuracy", "reconstruction_error"]


@dataclass(kw_only=True)
class Training:
    """What all runs of a comparison have in common."""

    budget_seconds: float | None = None
    """Seconds of training steps after which a run ends, when the step under way has; evaluations do
    not count. A step that alone takes longer ends its run as too slow."""
    epochs: int | None = None
    """Passes over the training data after which a run ends. With both, whichever ends first."""
    batch_size: int = 128
    """Samples of a step; 0 takes all of them."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls to 0 over the run."""
    data_dir: Path | None = None
    """Directory with the IDX files of fashion-mnist, gzipped or not."""


@dataclass(kw_only=True)
class Optimizers(Training):
    """Which optimizers to compare, on what and for how long."""

    data: tuple[DataName, ...] = ("digits",)
    """Data sets. digits come with scikit-learn; the files of fashion-mnist are in --data-dir."""
    models: tuple[ModelName, ...] = ("mlp",)
    """All classify, but for the autoencoder, which reconstructs."""
    optimizers: tuple[str, ...] = ("all",)
    """Names of optimizers, or all. Those that keep a matrix over all parameters do not apply to
    large models; the report lists what was left out."""
    rates: int = 5
    """Learning rates of each optimizer, the same number for all: its own default times powers of 3,
    from 3⁻² to 3² for five. The best is that of the lowest loss on the training set at the end,
    the mean over seeds."""
    seeds: int = 3
    """Runs at each rate; their seeds are 0, 1, 2 … Three show, but only four or more can decide:
    the largest of all differences between three and three has p = 0.1."""
    target: dict[Quantity, float] = field(default_factory=dict)
    """Test figures that the page gives the steps and seconds to: names and values, such as
    accuracy 0.97 loss 0.1. A task takes its metric if that is named, else the loss; without either,
    the loss that all optimizers came to at their best rates. The same command with another target
    writes the page anew."""
    output: Path = Path("reports/optimizers")
    """Directory of the comparison. One that was stopped goes on; more optimizers, models, data,
    rates or seeds are added to what is there."""
    execution: tyro.conf.OmitArgPrefixes[Execution] = field(default_factory=Execution)
    """Where the runs are made, and how many at a time."""


@dataclass(kw_only=True)
class OptimizerRun(Training):
    """One run of such a comparison, in this process."""

    optimizer: tyro.conf.Positional[str]
    """Name of the optimizer."""
    data: tyro.conf.Positional[DataName]
    """What to learn."""
    model: tyro.conf.Positional[ModelName]
    """What learns it."""
    rate: float | None = None
    """Learning rate; None is the optimizer's own."""
    seed: int = 0
    """Of the model, the order of the data, the optimizer, and the split of digits."""
    output: Path | None = None
    """Directory for result.json; None prints how it ended only."""

    @property
    def task(self) -> str:
        """Data and model."""
        return f"{self.data}-{self.model}"
