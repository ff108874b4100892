"""Diagonals and traces from products with random signs: E[z ⊙ Hz] is diag(H), E[zᵀHz] is tr H."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from npg.curvature.matrix import CurvatureMatrix
from npg.errors import ConfigurationError
from npg.linalg import flatten


def rademacher(like: Sequence[Tensor], generator: torch.Generator | None = None) -> list[Tensor]:
    """Draws ±1 with equal probability, a bit of the generator per entry.

    Args:
        like: Tensors whose shapes, dtypes and devices to take; a complex one gets a sign for
            either part.
        generator: On the tensors' device, or the CPU's where they are on ``meta``. Default:
            torch's own.

    Returns:
        A tensor for each.
    """
    sizes = [t.numel() * (2 if t.is_complex() else 1) for t in like]
    if not like:
        return []
    device = like[0].device
    # 64 at once: numbers that are drawn one by one would cost as much as a backward pass.
    words = torch.empty(-(-sum(sizes) // 64), dtype=torch.int64, device=device)
    if device.type != "meta":
        words.random_(-(2**63), None, generator=generator)
    octets = words.view(torch.uint8).int()
    table = _signs(torch.promote_types(like[0].dtype, torch.float32).to_real(), device)
    signs = table.index_select(0, octets).flatten()[: sum(sizes)]
    return [
        torch.view_as_complex(piece.to(t.dtype.to_real()).view(*t.shape, 2))
        if t.is_complex()
        else piece.to(t).view(t.shape)
        for piece, t in zip(signs.split(sizes), like, strict=True)
    ]


@lru_cache(maxsize=8)
def _signs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The signs [256, 8] that the bits of every octet stand for."""
    octets = torch.arange(256, device=device).unsqueeze(1)
    bits = octets >> torch.arange(8, device=device) & 1
    return (2 * bits - 1).to(dtype)


def probe(
    gradients: Sequence[Tensor], parameters: Sequence[Tensor], vectors: Sequence[Tensor]
) -> list[Tensor]:
    """H z, by differentiating gradients that have a graph.

    Args:
        gradients: Of a loss, with their graph, which is not kept.
        parameters: In which they are.
        vectors: z, per parameter.

    Returns:
        A tensor per parameter, outside the graph.
    """
    wanted = [(g, z) for g, z in zip(gradients, vectors, strict=True) if g.requires_grad]
    if not wanted:  # the loss is linear in all of them
        return [torch.zeros_like(p) for p in parameters]
    outputs, seeds = zip(*wanted, strict=True)
    return list(torch.autograd.grad(outputs, parameters, seeds, materialize_grads=True))


def hutchinson(
    matrix: CurvatureMatrix, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Estimates a matrix' diagonal without bias; its sum is an estimate of the trace.

    Args:
        matrix: C [P, P].
        samples: Products that it takes; the variance of an entry is the sum of squares of the
            rest of its row, over this.
        generator: Draws the signs. Default: torch's own.

    Returns:
        diag(C) [P], about.

    Raises:
        ConfigurationError: If there are no samples.

    Reference:
        Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", 2007.
    """
    if samples < 1:
        raise ConfigurationError(f"samples must be at least 1, got {samples}")
    total = torch.zeros_like(flatten(matrix.parameters))
    for _ in range(samples):
        (signs,) = rademacher([total], generator)
        total += signs * matrix.matvec(signs)
    return total / samples
