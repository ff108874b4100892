"""What a run can be told, from the command line or from the run that it continues."""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from common import run_directory, settings

from classification.names import DataName, ModelName
from classification.objective import ObjectiveName
from npg import optim
from npg.errors import ConfigurationError

DEFAULT_EPOCHS = 10


@dataclass
class Options:
    """Train a model with any optimizer of the library."""

    data: DataName = "digits"
    """digits come with scikit-learn: 1,797 images of 8 × 8; fashion-mnist: 70,000 of 28 × 28."""
    data_dir: Path | None = None
    """Directory with the IDX files of fashion-mnist, gzipped or not."""
    model: ModelName = "mlp"
    """All classify, but for the autoencoder, which reconstructs. linear and small have so
    few parameters that an optimizer may keep a matrix over all of them; coarse is linear in the
    means of four regions, too little to fit the training data."""
    optimizer: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(optim.names())}}}")] = (
        "natural-gradient"
    )
    """Name of the optimizer."""
    lr: float | None = None
    """Learning rate; None is the optimizer's own."""
    option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=VALUE, an argument of the optimizer's constructor, in YAML (null is None); may be
    repeated."""
    objective: ObjectiveName = "loss"
    """What to optimise. accuracy and f1 (macro-F1) are optimised themselves: by
    mle-guided-search and evolution-strategies as they are, by all others through the
    score-function gradient of their expectation."""
    draws: int | None = None
    """Classes drawn per sample for the score-function gradient; more have less variance; None is
    64."""
    imbalance: float = 1.0
    """Keeps of the last class's training samples one in so many, of the classes before it
    geometrically more, of the first all. The test data stay whole."""
    batch_size: int = 128
    """Samples of a step; 0 takes all of them. What is left over at the end of an epoch is left
    out."""
    epochs: int | None = None
    """Passes over the training data; None is as many as --budget-seconds allows, or 10."""
    budget_seconds: float | None = None
    """Seconds of training after which to stop; evaluations do not count."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls to 0 over the epochs or the seconds, whichever end first."""
    seed: int = 0
    """Fixes the model, the order of the data, the optimizer, and the split of digits."""
    device: str = "auto"
    """cpu, cuda or auto."""
    eval_freq: int | None = None
    """Steps between evaluations on the test data, each of which saves a checkpoint, too; None is
    once an epoch, 0 once, at the end."""
    start_from: Path | None = None
    """Start from the last model of the run in this directory, of the same data, model and seed."""
    seeds: int | None = None
    """Train so many seeds, from --seed on, and print means with 95 % intervals. With a metric for
    objective, each seed starts from a model trained on the cross-entropy, which is also trained on
    for as long, and both are compared to."""
    baseline_optimizer: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Optimizer of the cross-entropy, with --seeds and a metric; None is adamw."""
    baseline_lr: float | None = None
    """Its learning rate; None is its own."""
    baseline_epochs: int | None = None
    """Its epochs before the metric takes over; None is 100."""
    track_dir: Path = Path("runs")
    """Where run directories are made."""
    resume: Path | None = None
    """Continue the run in this directory from its last checkpoint. Its options hold; only when to
    stop and to evaluate, and where to run, may be changed."""
    progress_bar: bool = True
    """Draw a progress bar."""

    def optimizer_arguments(self) -> dict[str, Any]:
        """Returns what --option says, read as YAML."""
        arguments = {}
        for word in self.option:
            name, equals, value = word.partition("=")
            if not (name and equals):
                raise ConfigurationError(f"--option {word}: write NAME=VALUE, damping=0.01 say")
            arguments[name.replace("-", "_")] = _scalar(word, value)
        return arguments


# What may be different when a run is resumed.
CHANGEABLE = {
    "data_dir",
    "epochs",
    "budget_seconds",
    "device",
    "eval_freq",
    "resume",
    "progress_bar",
}

# What concerns several runs, and is not written into the directory of one.
OF_BASELINES = ("baseline_optimizer", "baseline_lr", "baseline_epochs")
OF_COMPARISONS = ("seeds", *OF_BASELINES)


def parse(argv: Sequence[str]) -> Options:
    """Reads the command line.

    Args:
        argv: Its words, without the program.

    Returns:
        The options.

    Raises:
        ConfigurationError: If they cannot work, or the run to resume cannot be used.
    """
    first = argparse.ArgumentParser(prog="classify.py", add_help=False, allow_abbrev=False)
    first.add_argument("--resume", type=Path)
    resume = first.parse_known_args(argv)[0].resume
    run = Options() if resume is None else read(resume)
    options = tyro.cli(Options, prog="classify.py", default=run, args=argv)
    if resume is not None:
        if options.seeds is not None:
            raise ConfigurationError("--seeds starts new runs: resume them one by one, without it")
        settings.refuse(settings.changed(options, run, but=CHANGEABLE), f"the run in {resume}")
    if options.epochs is None and options.budget_seconds is None:
        options = dataclasses.replace(options, epochs=DEFAULT_EPOCHS)
    if options.seeds is not None and options.start_from is not None:
        raise ConfigurationError("--seeds trains what it starts from: leave out --start-from")
    unused = [name for name in OF_BASELINES if getattr(options, name) is not None]
    if unused and (options.seeds is None or options.objective == "loss"):
        words = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise ConfigurationError(
            "nothing is compared to a cross-entropy without --seeds and --objective accuracy or "
            f"f1: give both, or leave out {words}"
        )
    if not 1 <= options.imbalance < math.inf:
        raise ConfigurationError(f"imbalance must be a number ≥ 1, got {options.imbalance}")
    settings.at_least(options, 1, "epochs", "seeds", "baseline_epochs")
    settings.at_least(options, 2, "draws")
    settings.at_least(options, 0, "batch_size", "eval_freq", "seed", "budget_seconds")
    options.optimizer_arguments()
    return options


def read(directory: Path) -> Options:
    """Reads the options of a run from its directory."""
    config = run_directory.read_config(directory)
    if "optimizer" not in config["options"]:  # of an agent
        raise ConfigurationError(f"{directory} is a run of train.py, not of classify.py")
    source = f"{directory / run_directory.CONFIG}"
    return Options(**settings.checked(Options, config["options"], source))


def write(directory: Path, options: Options) -> None:
    """Writes the options into the run's directory."""
    values = dataclasses.asdict(options)
    for name in ("resume", *OF_COMPARISONS):
        del values[name]
    values["option"] = list(options.option)
    for name in ("data_dir", "track_dir", "start_from"):
        values[name] = None if values[name] is None else str(values[name])
    run_directory.write_config(directory, {"options": values})


def _scalar(word: str, value: str) -> Any:
    try:
        read_value = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"--option {word}: {value!r} is not YAML") from error
    if isinstance(read_value, str):
        try:
            return float(read_value)  # YAML 1.1 reads 1e-3 as a string
        except ValueError:
            return read_value
    return read_value
