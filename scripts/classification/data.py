"""The data sets, as tensors in memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import seeds
from torch import Tensor

from classification import idx
from classification.names import DataName
from npg.errors import ConfigurationError

DIGITS_TEST_SHARE = 0.2
FASHION_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FASHION_REMEDY = (
    "--data-dir must be a directory with the four IDX files of Fashion-MNIST, gzipped or not; "
    "Debian's package dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist"
)


@dataclass(frozen=True)
class Samples:
    """Images with their classes.

    Attributes:
        inputs: Standardised images [N, 1, height, width].
        images: The same with intensities from 0 to 1.
        labels: Classes [N].
    """

    inputs: Tensor
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Tensor | slice) -> "Samples":
        return Samples(self.inputs[chosen], self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        train: To learn from.
        test: To measure with.
        classes: Their number.
    """

    train: Samples
    test: Samples
    classes: int

    @property
    def image_size(self) -> int:
        """Height and width, which are the same."""
        return self.train.images.shape[-1]


def load(
    name: DataName,
    data_dir: Path | None,
    seed: int,
    device: torch.device,
    imbalance: float = 1.0,
) -> Data:
    """Loads a data set.

    Args:
        name: Which one.
        data_dir: Where the files are; digits have none.
        seed: Splits digits, which come in one piece, into training and test; chooses what is left
            of the training data.
        device: Where the tensors go.
        imbalance: R. Of the training data, class k of K keeps the share R^(−k/(K − 1)). The test
            data stay whole, so that every class counts there.

    Returns:
        The data, standardised by mean and deviation of all training pixels.

    Raises:
        ConfigurationError: If the files are missing or unusable.
    """
    train, test = _digits(seed) if name == "digits" else _fashion_mnist(data_dir)
    train = _imbalanced(*train, imbalance, seeds.derived(seed, seeds.IMBALANCE))
    mean, deviation = train[0].mean(), train[0].std()

    def samples(images: np.ndarray, labels: np.ndarray) -> Samples:
        scaled = torch.tensor(images, dtype=torch.float32).unsqueeze(1).to(device)
        inputs = (scaled - float(mean)) / float(deviation)
        return Samples(inputs, scaled, torch.tensor(labels, dtype=torch.int64).to(device))

    return Data(samples(*train), samples(*test), classes=int(train[1].max()) + 1)


Arrays = tuple[np.ndarray, np.ndarray]


def _digits(seed: int) -> tuple[Arrays, Arrays]:
    from sklearn.datasets import load_digits  # takes a second, which only this data set costs

    digits = load_digits()
    images, labels = digits.images / 16.0, digits.target
    generator = np.random.default_rng(seeds.derived(seed, seeds.SPLIT))
    order = generator.permutation(len(labels))
    test, train = np.split(order, [round(DIGITS_TEST_SHARE * len(labels))])
    return (images[train], labels[train]), (images[test], labels[test])


def _imbalanced(images: np.ndarray, labels: np.ndarray, ratio: float, seed: int) -> Arrays:
    """Leaves out samples of the later classes, as Cui et al., "Class-balanced loss", 2019."""
    if ratio == 1:
        return images, labels
    generator = np.random.default_rng(seed)
    classes = int(labels.max()) + 1
    kept = []
    for k in range(classes):
        members = generator.permutation(np.flatnonzero(labels == k))
        kept.append(members[: max(1, round(len(members) * ratio ** (-k / (classes - 1))))])
    chosen = np.sort(np.concatenate(kept))
    return images[chosen], labels[chosen]


def _fashion_mnist(directory: Path | None) -> tuple[Arrays, Arrays]:
    if directory is None:
        raise ConfigurationError(f"--data fashion-mnist needs its files: {FASHION_REMEDY}")
    train, test = (_pair(directory, *FASHION_FILES[part]) for part in ("train", "test"))
    return train, test


def _pair(directory: Path, images: str, labels: str) -> Arrays:
    pixels, classes = idx.read(_find(directory, images), 3), idx.read(_find(directory, labels), 1)
    if len(pixels) != len(classes) or not len(pixels):
        raise ConfigurationError(
            f"{directory} has {len(pixels):,} images in {images} and {len(classes):,} labels in "
            f"{labels}: {FASHION_REMEDY}"
        )
    if pixels.shape[1:] != (28, 28):
        height, width = pixels.shape[1:]
        raise ConfigurationError(
            f"{images} in {directory} has images of {height} × {width} instead of 28 × 28 pixels: "
            f"{FASHION_REMEDY}"
        )
    return pixels.astype(np.float32) / 255, classes


def _find(directory: Path, name: str) -> Path:
    for candidate in (directory / name, directory / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise ConfigurationError(f"there is no {name} or {name}.gz in {directory}: {FASHION_REMEDY}")
