"""Initial weights that keep norms through linear layers and activations."""

import copy
import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import (
    activation,
    batchnorm,
    conv,
    dropout,
    instancenorm,
    normalization,
    pooling,
)

from npg.errors import ConfigurationError

Scheme = Literal["orthogonal", "he", "xavier"]
Activation = Callable[[Tensor], Tensor]
Module = TypeVar("Module", bound=nn.Module)

NAMED: dict[str, Activation] = {
    "linear": lambda z: z,
    "relu": torch.relu,
    "leaky_relu": nn.functional.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": nn.functional.elu,
    "selu": nn.functional.selu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "softplus": nn.functional.softplus,
}

NORMALISATIONS = (
    batchnorm._BatchNorm,
    instancenorm._InstanceNorm,
    normalization.LayerNorm,
    normalization.GroupNorm,
    nn.RMSNorm,
)
PASSING = (nn.Identity, nn.Flatten, nn.Unflatten, dropout._DropoutNd)
WIDEST, PANEL, NODES = 12.0, 0.5, 20


def norm_preserving_gain(nonlinearity: str | Activation) -> float:
    """g = 1 / √E[φ(z)²], z standard normal.

    A layer with weights of this gain behind φ gives pre-activations of unit variance if those in
    front of φ have unit variance: √2 for ReLU, 1 for the identity and, by its construction, for
    SELU; 1.593 for tanh, where ``torch.nn.init.calculate_gain`` rounds to 5/3.

    Args:
        nonlinearity: φ, elementwise: its name, a module, or a function of a tensor.

    Returns:
        g, to about twelve digits also where φ has kinks at multiples of ½.

    Raises:
        ConfigurationError: If φ is not elementwise, or E[φ(z)²] is 0 or not finite.

    Reference:
        He et al., "Delving deep into rectifiers", 2015, section 2.2, for any φ; Klambauer et al.,
        "Self-normalizing neural networks", 2017, for SELU.
    """
    function = _function(nonlinearity)
    z, weights = _gaussian_nodes()
    with torch.no_grad():
        values = function(z.clone())
        half = function(z[: len(z) // 2].clone())
    if values.shape != z.shape or not torch.equal(values[: len(half)], half):
        raise ConfigurationError(
            f"nonlinearity {nonlinearity} is not elementwise, or random: give one that is"
        )
    second_moment = float((weights * values.square()).sum())
    if not 0 < second_moment < math.inf:
        raise ConfigurationError(
            f"nonlinearity {nonlinearity} has E[φ(z)²] = {second_moment}: no gain keeps norms"
        )
    return 1 / math.sqrt(second_moment)


def initialise_(
    module: Module,
    scheme: Scheme = "orthogonal",
    nonlinearity: str | Activation | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Module:
    """Draws the weights of a module's linear and convolutional layers so that norms are kept.

    Inputs of unit mean square become outputs of unit mean square, up to the fluctuations of a
    finite width, which a normalisation layer ends. For activations that grow faster than linearly
    (GELU, SiLU) these grow with depth, whatever the gain.

    Biases, normalisation layers, embeddings, attention and recurrent layers stay as they are.

    Args:
        module: To be initialised, in place.
        scheme: ``"orthogonal"``: orthonormal rows, or, of a layer that widens, orthogonal columns
            of length √(outputs / inputs): no direction is stretched over another. ``"he"``: normal
            of variance 1 / inputs; its columns are nearly orthogonal by concentration, with cosines
            of 1/√outputs. ``"xavier"``: variance 2 / (inputs + outputs), a compromise between the
            norms of activations and of gradients. All are multiplied by the gain.
        nonlinearity: The activation in front of every layer, a name, a module or a function.
            Default: found in the order of ``nn.Sequential``, where the first layer meets none.
        generator: Source of the numbers, on the weights' device. Default: torch's global one.

    Returns:
        The module.

    Raises:
        ConfigurationError: If activations cannot be found, or an argument cannot work; no weight
            has changed then.

    Reference:
        Glorot and Bengio 2010; He et al. 2015; Saxe, McClelland and Ganguli, "Exact solutions to
        the nonlinear dynamics of learning in deep linear neural networks", 2014.
    """
    if scheme not in ("orthogonal", "he", "xavier"):
        raise ConfigurationError(f"scheme must be orthogonal, he or xavier, got {scheme!r}")
    if nonlinearity is None:
        gains = dict(_found(module))
    else:
        gain = norm_preserving_gain(nonlinearity)
        gains = dict.fromkeys(_layers(module), gain)
    if not gains:
        raise ConfigurationError(f"module has no linear or convolutional layer: {module}")
    for layer in gains:
        _check(layer)
    for layer, gain in gains.items():
        _draw_(layer, scheme, gain, generator)
    return module


def _draw_(
    layer: nn.Module, scheme: Scheme, gain: float, generator: torch.Generator | None
) -> None:
    """Draws each group's weights [outputs, inputs, *kernel]."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    transposed = isinstance(layer, conv._ConvTransposeNd)
    groups = layer.groups if isinstance(layer, conv._ConvNd) else 1
    if isinstance(layer, conv._ConvTransposeNd):
        # Only every stride-th tap of the kernel meets one output.
        gain *= math.sqrt(math.prod(layer.stride))
    wide = torch.promote_types(weight.dtype, torch.float32)  # QR has no half precision
    for block in weight.detach().chunk(groups):
        target = block.transpose(0, 1) if transposed else block
        drawn = torch.empty(target.shape, dtype=wide, device=weight.device)
        outputs, inputs = len(drawn), drawn[0].numel()
        if scheme == "orthogonal":
            widening = max(1.0, outputs / inputs)
            nn.init.orthogonal_(drawn, gain * math.sqrt(widening), generator=generator)
        elif scheme == "he":
            nn.init.kaiming_normal_(drawn, nonlinearity="linear", generator=generator)
            drawn.mul_(gain)
        else:
            nn.init.xavier_normal_(drawn, gain, generator=generator)
        with torch.no_grad():
            target.copy_(drawn)


def _check(layer: nn.Module) -> None:
    weight = layer.weight
    if nn.utils.parametrize.is_parametrized(layer) or not isinstance(weight, nn.Parameter):
        raise ConfigurationError(
            f"{layer} computes its weight from others: initialise it before it is parametrised"
        )
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ConfigurationError(f"{layer} has no shape yet: run a forward pass first")
    if not weight.is_floating_point() or weight.numel() == 0:
        raise ConfigurationError(
            f"{layer} has weights of {weight.dtype} and shape {list(weight.shape)}: only real "
            "ones that are not empty can be drawn"
        )


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers that are drawn; attention is a layer of its own."""
    if isinstance(module, (nn.Linear, conv._ConvNd)):
        yield module
    elif not isinstance(module, nn.MultiheadAttention):
        for child in module.children():
            yield from _layers(child)


def _found(module: nn.Module) -> Iterator[tuple[nn.Module, float]]:
    """The layers with the gains of the activations in front of them."""
    between: list[nn.Module] = []
    for part in _sequence(module):
        if isinstance(part, (nn.Linear, conv._ConvNd)):
            yield part, norm_preserving_gain(_composed(between)) if between else 1.0
            between = []
        elif isinstance(part, NORMALISATIONS):
            between = []
        elif _is_of(activation, part) and not isinstance(part, nn.MultiheadAttention):
            between.append(part)
        elif not (isinstance(part, PASSING) or _is_of(pooling, part)):
            raise ConfigurationError(
                f"what {type(part).__name__} does between the layers is not known: pass "
                "nonlinearity=, the activation in front of every layer, or initialise the "
                "nn.Sequential parts one by one"
            )


def _is_of(file: ModuleType, part: nn.Module) -> bool:
    return type(part).__module__ == file.__name__


def _sequence(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for part in module:
            yield from _sequence(part)
    else:
        yield module


def _composed(parts: list[nn.Module]) -> nn.Module:
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def _function(nonlinearity: str | Activation) -> Activation:
    if isinstance(nonlinearity, nn.Module):
        return copy.deepcopy(nonlinearity).double().cpu()
    if callable(nonlinearity):
        return nonlinearity
    if nonlinearity not in NAMED:
        raise ConfigurationError(
            f"nonlinearity must be one of {', '.join(NAMED)}, a module or a function, got "
            f"{nonlinearity!r}"
        )
    return NAMED[nonlinearity]


def _gaussian_nodes() -> tuple[Tensor, Tensor]:
    """Nodes and weights of E[f(z)], Gauss and Legendre's on panels with kinks at their ends."""
    # Gauss and Hermite's nodes know no kinks: 100 of them give four digits for ELU.
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    starts = np.arange(-WIDEST, WIDEST, PANEL)
    z = (starts[:, None] + PANEL * (nodes + 1) / 2).ravel()
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return torch.from_numpy(z), torch.from_numpy(
        np.tile(weights * PANEL / 2, len(starts)) * density
    )
