"""Columns of the Fisher matrix of a prediction in its own tensors: F = Σ_c r_c r_cᵀ per sample."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from npg.errors import ConfigurationError
from npg.likelihoods import likelihood


def fisher_columns(
    prediction: Distribution, wanted: Sequence[bool] | None = None
) -> Iterator[tuple[Tensor, ...]]:
    """Factorises every sample's Fisher matrix, or a principal block of it.

    Args:
        prediction: Distribution of ``batch_shape`` (...), outside the graph.
        wanted: Which of the distribution's tensors the block is over. Default: all.

    Yields:
        Vectors r_c, one tensor per wanted tensor of the distribution, with Σ_c r_c r_cᵀ = F for
        every sample.

    Raises:
        ConfigurationError: If the tensors' leading dimensions are not the batch's.
    """
    family = likelihood(prediction)
    every = family.tensors(prediction)
    chosen = [wanted is None or wanted[i] for i in range(len(every))]
    tensors = tuple(t for t, yes in zip(every, chosen, strict=True) if yes)
    batch = prediction.batch_shape
    if not tensors:
        return
    if any(t.shape[: len(batch)] != batch for t in tensors):
        raise ConfigurationError(
            f'fisher="exact" needs tensors with one row per sample, batch_shape {tuple(batch)}; '
            'use fisher="sampled"'
        )
    sizes = [t.shape[len(batch) :].numel() for t in tensors]
    total = sum(sizes)
    unit = tensors[0].new_zeros(*batch, total)
    columns = []
    for i in range(total):
        unit.zero_()
        unit[..., i] = 1
        pieces = iter(_split(unit, tensors, sizes))
        tangents = tuple(
            next(pieces) if yes else torch.zeros_like(t)
            for t, yes in zip(every, chosen, strict=True)
        )
        product = [
            p
            for p, yes in zip(family.fisher_product(prediction, tangents), chosen, strict=True)
            if yes
        ]
        columns.append(torch.cat([p.reshape(*batch, -1) for p in product], -1))
    matrix = torch.stack(columns, -1)
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    for i in range(total):
        column = root[..., i]
        yield _split(column, tensors, sizes)


def _split(flat: Tensor, tensors: tuple[Tensor, ...], sizes: list[int]) -> tuple[Tensor, ...]:
    pieces = flat.split(sizes, -1)
    return tuple(piece.reshape(t.shape) for piece, t in zip(pieces, tensors, strict=True))
