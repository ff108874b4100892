"""Columns of the Fisher matrix of a prediction in its own tensors: F = Σ_c r_c r_cᵀ per sample."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import Distribution

from npg.errors import ConfigurationError
from npg.likelihoods import likelihood


def fisher_columns(prediction: Distribution) -> Iterator[tuple[Tensor, ...]]:
    """Factorises every sample's Fisher matrix.

    Args:
        prediction: Distribution of ``batch_shape`` (...), outside the graph.

    Yields:
        Vectors r_c, one tensor per tensor of the distribution, with Σ_c r_c r_cᵀ = F for every
        sample.

    Raises:
        ConfigurationError: If the tensors' leading dimensions are not the batch's.
    """
    family = likelihood(prediction)
    tensors = family.tensors(prediction)
    batch = prediction.batch_shape
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
        product = family.fisher_product(prediction, _split(unit, tensors, sizes))
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
