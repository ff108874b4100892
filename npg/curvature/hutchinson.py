"""Diagonals and traces from products with random signs: E[z ⊙ Hz] is diag(H), E[zᵀHz] is tr H."""

from collections.abc import Sequence

import torch
from torch import Tensor

from npg.curvature.matrix import CurvatureMatrix
from npg.errors import ConfigurationError
from npg.linalg import flatten


class Signs:
    """Random signs for the same tensors, step after step, in memory that is kept.

    Args:
        like: Tensors whose shapes, dtypes and devices to take; a complex one gets a sign for
            either part.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.like = [t.detach() for t in like]
        sizes = [t.numel() * (2 if t.is_complex() else 1) for t in like]
        words = -(-sum(sizes) // 64)
        device = like[0].device
        self.words = torch.empty(words, dtype=torch.int64, device=device)
        self.octets = self.words.view(torch.uint8)
        self.table = _signs(torch.promote_types(like[0].dtype, torch.float32).to_real(), device)
        self.drawn = self.table.new_empty(8 * words, 8)
        self.pieces = self.drawn.view(-1)[: sum(sizes)].split(sizes)

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are tensors like those it was made for."""
        return len(tensors) == len(self.like) and all(
            (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
            for a, b in zip(tensors, self.like, strict=True)
        )

    def draw(self, generator: torch.Generator | None = None) -> list[Tensor]:
        """Draws ±1 with equal probability, a bit of the generator per entry.

        Args:
            generator: On the tensors' device, or the CPU's where they are on ``meta``. Default:
                torch's own.

        Returns:
            A tensor for each, until the next draw.
        """
        # 64 at once: numbers that are drawn one by one would cost as much as a backward pass.
        if self.words.device.type != "meta":
            self.words.random_(-(2**63), None, generator=generator)
        torch.index_select(self.table, 0, self.octets.int(), out=self.drawn)
        return [
            torch.view_as_complex(piece.to(t.dtype.to_real()).view(*t.shape, 2))
            if t.is_complex()
            else piece.view(t.shape).to(t)
            for piece, t in zip(self.pieces, self.like, strict=True)
        ]


def rademacher(like: Sequence[Tensor], generator: torch.Generator | None = None) -> list[Tensor]:
    """Draws :class:`Signs` once.

    Args:
        like: Tensors whose shapes, dtypes and devices to take.
        generator: On their device. Default: torch's own.

    Returns:
        A tensor for each.
    """
    return Signs(like).draw(generator) if like else []


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
    source = Signs([total])
    for _ in range(samples):
        (signs,) = source.draw(generator)
        total += signs * matrix.matvec(signs)
    return total / samples
