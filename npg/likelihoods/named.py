"""How a module's output tensor parametrises a prediction."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal

from npg.errors import ConfigurationError

NAMED: dict[str, Callable[[Tensor], Distribution]] = {
    "categorical": lambda output: _categorical(output),
    "bernoulli": lambda output: Independent(
        Bernoulli(logits=output, validate_args=False), max(output.ndim - 1, 0), validate_args=False
    ),
    "normal": lambda output: _unit_normal(output, variance=1.0),
    # ‖f − y‖²/d, the mean over outputs, is −log p of a variance d/2, up to a constant.
    "mse": lambda output: _unit_normal(output, variance=output.shape[1:].numel() / 2),
}


def _categorical(logits: Tensor) -> Categorical:
    if logits.ndim < 2 or logits.shape[-1] < 2:
        raise ConfigurationError(
            f'"categorical" needs logits of shape [samples, ..., classes] with two classes or '
            f"more, got {list(logits.shape)}: let the model return them so, or for one number per "
            'sample use "bernoulli" (its logit), "normal" or "mse" (a mean)'
        )
    if logits.ndim > 3:
        raise ConfigurationError(
            f'"categorical" takes the last dimension for the classes, got {list(logits.shape)}: of '
            "images of logits, [samples, classes, height, width], say which it is by a callable, "
            "likelihood=lambda z: Categorical(logits=z.movedim(1, -1))"
        )
    return Categorical(logits=logits, validate_args=False)


def _unit_normal(output: Tensor, variance: float) -> Distribution:
    scale = torch.full_like(output, variance**0.5)
    normal = Normal(output, scale, validate_args=False)
    return Independent(normal, max(output.ndim - 1, 0), validate_args=False)


def as_distribution(
    prediction: Distribution | Tensor,
    family: str | Callable[[Tensor], Distribution] | None = None,
) -> Distribution:
    """Reads a model's output as a distribution.

    Args:
        prediction: A distribution, or a module's output tensor with samples along dimension 0.
        family: How a tensor parametrises the prediction: ``"categorical"`` (logits, classes
            last), ``"bernoulli"`` (logits), ``"normal"`` (mean, unit variance), ``"mse"`` (mean,
            for a squared error averaged over outputs), or a callable output → Distribution.

    Returns:
        The distribution.

    Raises:
        ConfigurationError: If the prediction is a tensor and ``family`` does not say what it
            means, or does not fit its shape.
    """
    if isinstance(prediction, Distribution):
        return prediction
    if callable(family):
        return family(prediction)
    if family in NAMED:
        if prediction.ndim == 0:
            raise ConfigurationError(
                f"likelihood={family!r} reads one sample per entry of dimension 0, and the "
                "prediction is a single number: return the model's output, not its loss"
            )
        return NAMED[family](prediction)
    raise ConfigurationError(
        f"the prediction is a tensor and likelihood={family!r} does not say what it parametrises: "
        f"pass likelihood= one of {sorted(NAMED)} or a callable, or return a Distribution"
    )
