"""The models, and what each is trained to do."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classification.data import Samples
from classification.names import ModelName
from npg.objectives import macro_f1

# Of the autoencoder for 28 × 28 pixels; smaller images get proportionally narrower layers.
AUTOENCODER_WIDTHS = (500, 250, 30)
AUTOENCODER_PIXELS = 28 * 28
NARROWEST = 8
COARSE_REGIONS = 2  # in each direction


@dataclass(frozen=True)
class Task:
    """What a model predicts, and how well.

    Attributes:
        likelihood: The distribution whose logits the model returns, as
            :func:`npg.likelihoods.as_distribution` names it.
        loss: (output, samples) → mean negative log-likelihood per sample, nats.
        metric: Name of the figure of merit, one of ``measures``.
        measures: Name → (output, samples) → a figure over all samples.
        larger_is_better: Which way is up.
    """

    likelihood: str
    loss: Callable[[Tensor, Samples], Tensor]
    metric: str
    measures: dict[str, Callable[[Tensor, Samples], Tensor]]
    larger_is_better: bool


def _cross_entropy(logits: Tensor, samples: Samples) -> Tensor:
    return F.cross_entropy(logits, samples.labels)


def _accuracy(logits: Tensor, samples: Samples) -> Tensor:
    return (logits.argmax(1) == samples.labels).double().mean()


def _macro_f1(logits: Tensor, samples: Samples) -> Tensor:
    return macro_f1(logits.argmax(1), samples.labels, logits.shape[1])


def _pixel_cross_entropy(logits: Tensor, samples: Samples) -> Tensor:
    pixels = samples.images.flatten(1)
    return F.binary_cross_entropy_with_logits(logits, pixels, reduction="sum") / len(pixels)


def _squared_error(logits: Tensor, samples: Samples) -> Tensor:
    return (logits.sigmoid() - samples.images.flatten(1)).square().sum(1).mean()


CLASSIFICATION = Task(
    "categorical",
    _cross_entropy,
    "accuracy",
    {"accuracy": _accuracy, "macro_f1": _macro_f1},
    larger_is_better=True,
)
RECONSTRUCTION = Task(
    "bernoulli",
    _pixel_cross_entropy,
    "reconstruction_error",
    {"reconstruction_error": _squared_error},
    larger_is_better=False,
)


class RowTransformer(nn.Module):
    """Attention between the rows of an image, whose mean is classified.

    It has no dropout: a line search evaluates the same function several times.

    Args:
        image_size: Height and width, pixels.
        classes: Number of outputs.
        width: Of the embedding of a row.
        heads: Of the attention.
        layers: Of the encoder.
    """

    def __init__(
        self, image_size: int, classes: int, width: int = 64, heads: int = 4, layers: int = 2
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(image_size, width)
        self.position = nn.Parameter(0.02 * torch.randn(image_size, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, dim_feedforward=2 * width, dropout=0.0, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [N, classes] of images [N, 1, height, width]."""
        rows = self.embedding(images.squeeze(1)) + self.position
        return self.head(self.encoder(rows).mean(1))


def build(name: ModelName, image_size: int, classes: int) -> tuple[nn.Module, Task]:
    """Makes a model for square images with one channel.

    Args:
        name: Which one.
        image_size: Height and width, pixels.
        classes: Number of classes.

    Returns:
        The model, and its task.
    """
    if name == "autoencoder":
        return _autoencoder(image_size**2), RECONSTRUCTION
    if name == "transformer":
        return RowTransformer(image_size, classes), CLASSIFICATION
    if name == "cnn":
        return _convolutions(image_size, classes), CLASSIFICATION
    if name == "coarse":  # which cannot fit the digits, so that it matters what it is trained on
        regions = nn.AdaptiveAvgPool2d(COARSE_REGIONS)
        return nn.Sequential(
            regions, nn.Flatten(), nn.Linear(COARSE_REGIONS**2, classes)
        ), CLASSIFICATION
    if name in ("linear", "small"):  # for optimizers that keep a matrix over all parameters
        widths = [image_size**2, classes] if name == "linear" else [image_size**2, 16, classes]
        layers = _chain(*widths, activation=nn.Tanh)
        return nn.Sequential(nn.Flatten(), *layers), CLASSIFICATION
    return nn.Sequential(nn.Flatten(), *_chain(image_size**2, 256, 256, classes)), CLASSIFICATION


def _chain(*widths: int, activation: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    """Returns linear layers with activations between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return layers[:-1]


def _convolutions(image_size: int, classes: int) -> nn.Module:
    quarter = -(-image_size // 4)  # halved twice, rounded up
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        *_chain(32 * quarter**2, 128, classes),
    )


def _autoencoder(pixels: int) -> nn.Module:
    hidden = [
        max(NARROWEST, round(width * pixels / AUTOENCODER_PIXELS)) for width in AUTOENCODER_WIDTHS
    ]
    widths = [pixels, *hidden, *hidden[-2::-1], pixels]
    return nn.Sequential(nn.Flatten(), *_chain(*widths, activation=nn.Tanh))
